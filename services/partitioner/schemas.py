"""Bodies that only operators send to the partitioner."""

from pydantic import Field

from services.partitioner.domain.prediction import Load, Prediction
from services.partitioner.domain.quality import PlanQuality
from services.partitioner.domain.rebalancing import Advice
from shared.contracts.base import Contract
from shared.contracts.partitioner import PlanRequest
from shared.domain.plan import NodeCapability, PartitionPlan


class QualityRequest(Contract):
    """`POST /plans/quality`: a plan of this partitioner's models, and the nodes it seats."""

    plan: PartitionPlan
    nodes: tuple[NodeCapability, ...] = Field(max_length=20_000)


class QualityResponse(Contract):
    quality: PlanQuality


class PreviewRequest(Contract):
    """`POST /plans/preview`: what a plan would be, and do under this load."""

    wanted: PlanRequest
    sequences: int = Field(default=1, ge=1, le=4_096)
    prompt_tokens: int = Field(default=128, ge=1, le=1 << 24)
    context_tokens: int = Field(default=1_024, ge=1, le=1 << 24)

    @property
    def load(self) -> Load:
        return Load(self.sequences, self.prompt_tokens, self.context_tokens)


class PreviewResponse(Contract):
    plan: PartitionPlan
    prediction: Prediction
    quality: PlanQuality


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
