"""Loads stages ahead of the first task."""

import asyncio

from services.coordinator.service.assigning import stage_ref
from services.coordinator.service.interfaces import PlacementsInterface
from services.coordinator.service.loading import load_stage
from services.coordinator.service.member import Member
from services.coordinator.service.membership import Membership
from services.coordinator.service.preparing import Preparing
from shared.contracts.coordinator import Place
from shared.contracts.messages import StageReady, StageRef
from shared.domain.errors import ButterflyError, NoCapacity
from shared.domain.plan import Partition, PartitionPlan


def _stages(plan: PartitionPlan) -> tuple[Partition, ...]:
    """One seat for each stage that a node is to hold, in whatever lanes."""
    return tuple({(seat.node_id, seat.layers): seat for seat in plan.seats}.values())


class Placements(PlacementsInterface):
    def __init__(self, members: Membership, preparing: Preparing) -> None:
        self._members, self._preparing = members, preparing

    async def place(self, wanted: Place) -> None:
        plan = wanted.plan
        seated: list[tuple[Member, StageRef]] = []
        for partition in _stages(plan):
            member = self._members.find(partition.node_id)
            if member is None:
                raise NoCapacity(f"node {partition.node_id} is not here", retry_after_s=1.0)
            seated.append((member, stage_ref(plan, partition)))
        results = await asyncio.gather(*(self._load(member, ref) for member, ref in seated))
        for error in results:
            if error is not None:
                raise error
        self._preparing.placed(plan)

    async def _load(self, member: Member, ref: StageRef) -> ButterflyError | None:
        try:
            await load_stage(self._members, member, ref)
        except ButterflyError as error:
            self._members.stage_ready(member, StageReady(stage_ref=ref, error_code=error.code, error=error.message))
            return error
        return None
