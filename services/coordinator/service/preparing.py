"""Has spare nodes fetch and test the stages they may have to take over, while nobody waits for an answer.

A stage that a node has never held costs it a download and a self-test, seconds in which an answer that has lost a
node would stand still.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence

from services.coordinator.domain.slots import SlotLedger
from services.coordinator.service.assigning import stage_ref
from services.coordinator.service.member import Member, stage_key
from services.coordinator.service.membership import Membership
from shared.contracts.messages import LoadStage, StageRef
from shared.domain.errors import ButterflyError
from shared.domain.ids import ModelId, NodeId
from shared.domain.plan import PartitionPlan
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
IDLE_LOOKS = 5  # one after the other: what comes now will not come all at once later
SPARES_PER_STAGE = 2  # one may be lost together with the node whose seat it would take


class Preparing:
    def __init__(self, *, members: Membership, slots: SlotLedger, clock: Clock) -> None:
        self._members = members
        self._slots = slots
        self._clock = clock
        self._plans: dict[ModelId, PartitionPlan] = {}
        self._asked: set[tuple[NodeId, str, StageRef]] = set()
        """Node, its run, and the stage."""
        self._idle_looks = 0

    def placed(self, plan: PartitionPlan) -> None:
        """The latest plan of its model."""
        self._plans[plan.model_id] = plan

    async def run_once(self) -> None:
        """To be called in a loop."""
        await self._clock.sleep(LOOK_EVERY_S)
        self._idle_looks = 0 if self._is_busy() else self._idle_looks + 1
        if self._idle_looks < IDLE_LOOKS:
            return
        for member, ref in self._wanted():
            self._idle_looks = 0
            await self._prepare(member, ref)
            return

    def _is_busy(self) -> bool:
        return any(member.loading or self._slots.used(member.node_id) for member in self._members.ready())

    def _wanted(self) -> Iterator[tuple[Member, StageRef]]:
        """The first spare of every stage before the second of any."""
        for plan in self._plans.values():
            stages = plan.lanes[0].partitions
            for rank in itertools.zip_longest(*(_spares_at(plan, seat.stage) for seat in stages)):
                for node_id, seat in zip(rank, stages, strict=True):
                    member = None if node_id is None else self._members.find(node_id)
                    ref = stage_ref(plan, seat)
                    if member is not None and stage_key(ref) not in member.facts and not self._was_asked(member, ref):
                        yield member, ref

    def _was_asked(self, member: Member, ref: StageRef) -> bool:
        return (member.node_id, member.boot_id, ref) in self._asked

    async def _prepare(self, member: Member, ref: StageRef) -> None:
        runs = {(each.node_id, each.boot_id) for each in self._members.ready()}
        self._asked = {asked for asked in self._asked if asked[:2] in runs}
        self._asked.add((member.node_id, member.boot_id, ref))
        member.asked.add(stage_key(ref))
        try:
            facts = await member.worker.load(LoadStage(stage_ref=ref, holds=False))
        except ButterflyError as error:  # it will be asked again when it is needed
            log.info("stage_not_prepared", extra={"node_id": member.node_id, "code": error.code})
            return
        if facts is not None:
            self._members.stage_known(member, ref, facts)


def _spares_at(plan: PartitionPlan, stage: int) -> Sequence[NodeId]:
    """Best first: those that have room for the stage beside their seats, then those that would have to drop another."""
    seated = {lane.partitions[stage].node_id for lane in plan.lanes}
    others = (seat.node_id for seat in plan.seats if seat.node_id not in seated)
    spares = plan.spares[stage] if plan.spares else ()
    return list(dict.fromkeys((*spares, *others)))[:SPARES_PER_STAGE]
