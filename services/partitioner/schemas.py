"""Bodies that only operators send to the partitioner."""

from pydantic import Field

from services.partitioner.domain.quality import PlanQuality
from shared.contracts.base import Contract
from shared.domain.plan import NodeCapability, PartitionPlan


class QualityRequest(Contract):
    """`POST /plans/quality`: a plan of this partitioner's models, and the nodes it seats."""

    plan: PartitionPlan
    nodes: tuple[NodeCapability, ...] = Field(max_length=20_000)


class QualityResponse(Contract):
    quality: PlanQuality


class DroppedPlans(Contract):
    """`DELETE /plans`: how many plans were dropped."""

    dropped: int
