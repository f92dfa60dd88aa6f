"""Has spare nodes fetch and test the stages they may have to take over, while nobody waits for an answer.

A stage that a node has never held costs it a download and a self-test, seconds in which an answer that has lost a
node would stand still.
"""

import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence

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
PATIENCE_S = 300.0  # for a download and a test; whoever takes longer does not hold up the others
MAX_PLANS = 16  # of the models that were placed last


class Preparing:
    """One node at a time, on a host where nothing else goes on. A node that says it is always busy harms its own host
    alone."""

    def __init__(
        self,
        *,
        members: Membership,
        slots: SlotLedger,
        is_measuring: Callable[[str], bool],
        max_byzantine: int,
        clock: Clock,
    ) -> None:
        """`is_measuring`: whether a node of this host is having its speed measured."""
        self._members = members
        self._slots = slots
        self._is_measuring = is_measuring
        self._nodes_per_stage = 2 * max_byzantine + 2
        """All that a quorum or a dispute takes, whatever the lanes of the plan, and one that may be lost."""
        self._clock = clock
        self._plans: OrderedDict[ModelId, PartitionPlan] = OrderedDict()
        self._asked: set[tuple[NodeId, str, StageRef]] = set()
        """Node, its run, and the stage."""
        self._idle_looks: dict[str, int] = {}
        """In a row, by host."""
        self._until_s = 0.0
        """Till then the node that was asked last is waited for."""

    def placed(self, plan: PartitionPlan) -> None:
        """The latest plan of its model."""
        self._plans[plan.model_id] = plan
        self._plans.move_to_end(plan.model_id)
        if len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)

    async def run_once(self) -> None:
        """To be called in a loop."""
        await self._clock.sleep(LOOK_EVERY_S)
        ready = {member.node_id: member for member in self._members.ready()}
        self._look(ready)
        if self._clock.now_s() < self._until_s and any(member.preparing for member in ready.values()):
            return
        for member, ref in self._wanted(ready):
            if self._idle_looks[member.capability.machine] >= IDLE_LOOKS:
                self._idle_looks = dict.fromkeys(self._idle_looks, 0)
                await self._prepare(member, ref, ready)
                return

    def _look(self, ready: Mapping[NodeId, Member]) -> None:
        hosts = {member.capability.machine for member in ready.values()}
        busy = {member.capability.machine for member in ready.values() if self._is_busy(member)}
        busy |= {host for host in hosts if self._is_measuring(host)}
        self._idle_looks = {host: 0 if host in busy else self._idle_looks.get(host, 0) + 1 for host in hosts}

    def _is_busy(self, member: Member) -> bool:
        return bool(member.loading or member.preparing or self._slots.used(member.node_id))

    def _wanted(self, ready: Mapping[NodeId, Member]) -> Iterator[tuple[Member, StageRef]]:
        """The first spare of every stage before the second of any."""
        for plan in self._plans.values():
            stages = plan.lanes[0].partitions
            spares = [_spares_at(plan, seat.stage, most=self._nodes_per_stage - len(plan.lanes)) for seat in stages]
            for rank in itertools.zip_longest(*spares):
                for node_id, seat in zip(rank, stages, strict=True):
                    member = ready.get(node_id)
                    ref = stage_ref(plan, seat)
                    if member is not None and stage_key(ref) not in member.facts and not self._was_asked(member, ref):
                        yield member, ref

    def _was_asked(self, member: Member, ref: StageRef) -> bool:
        return (member.node_id, member.boot_id, ref) in self._asked

    async def _prepare(self, member: Member, ref: StageRef, ready: Mapping[NodeId, Member]) -> None:
        runs = {(each.node_id, each.boot_id) for each in ready.values()}
        self._asked = {asked for asked in self._asked if asked[:2] in runs}
        self._asked.add((member.node_id, member.boot_id, ref))
        self._until_s = self._clock.now_s() + PATIENCE_S
        self._members.preparing(member, ref)
        try:
            facts = await member.worker.load(LoadStage(stage_ref=ref, holds=False))
        except ButterflyError as error:  # it will be asked again when it is needed
            log.info("stage_not_prepared", extra={"node_id": member.node_id, "code": error.code})
            self._members.not_preparing(member, ref)
            return
        if facts is not None:
            self._members.not_preparing(member, ref)
            self._members.stage_known(member, ref, facts)


def _spares_at(plan: PartitionPlan, stage: int, *, most: int) -> Sequence[NodeId]:
    """Best first: those that have room for the stage beside their seats, then those that would have to drop another."""
    seated = {lane.partitions[stage].node_id for lane in plan.lanes}
    others = (seat.node_id for seat in plan.seats if seat.node_id not in seated)
    spares = plan.spares[stage] if plan.spares else ()
    return list(dict.fromkeys((*spares, *others)))[:most]
