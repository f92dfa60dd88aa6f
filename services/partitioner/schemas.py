"""Bodies that only operators send to the partitioner."""

from services.partitioner.domain.rebalancing import Advice
from shared.contracts.base import Contract
from shared.contracts.partitioner import PlanRequest
from shared.domain.plan import PartitionPlan


class RebalanceRequest(Contract):
    """`POST /plans/advice`: whether the plan that would be made now is worth leaving `present` for."""

    wanted: PlanRequest
    present: PartitionPlan


class RebalanceResponse(Contract):
    plan: PartitionPlan
    advice: Advice


class DroppedPlans(Contract):
    """`DELETE /plans`: how many plans were dropped."""

    dropped: int
