"""HTTP bodies of the partitioner: the model catalogue, stage files, plans."""

from pydantic import Field

from shared.contracts.base import Contract
from shared.domain.ids import ModelId
from shared.domain.layers import ModelInfo
from shared.domain.plan import NodeCapability, Objective, PartitionPlan, Pipeline, Seating
from shared.domain.plan_figures import Load, PlanQuality, Prediction


class ModelList(Contract):
    """`GET /models`; `POST /models/rescan` answers the same after reading the models folder again."""

    models: tuple[ModelInfo, ...]
    refused: tuple["RefusedFile", ...] = ()


class RefusedFile(Contract):
    """A file in the models folder that is not served, and why."""

    file: str
    reason: str


class PlanRequest(Contract):
    """`POST /plans`. Lacking fields take the partitioner's configured defaults."""

    model_id: ModelId
    nodes: tuple[NodeCapability, ...] = Field(max_length=20_000)
    strategy: str | None = None
    objective: Objective | None = None
    num_stages: int | None = Field(default=None, ge=1)
    seating: Seating = Seating()
    """Which lanes, and what their seats must keep. Node ids in it that are not among `nodes` mean nothing."""


class PlanResponse(Contract):
    plan: PartitionPlan
    model: ModelInfo
    cached: bool


class PipelinesResponse(Contract):
    """`POST /plans/pipelines`, asked as `POST /plans`: the plans that new sessions are to go by now, best first."""

    pipelines: tuple[Pipeline, ...] = Field(min_length=1)


class QualityRequest(Contract):
    """`POST /plans/quality`: a plan of this partitioner's models, and the nodes it seats."""

    plan: PartitionPlan
    nodes: tuple[NodeCapability, ...] = Field(max_length=20_000)


class QualityResponse(Contract):
    quality: PlanQuality


class PreviewRequest(Contract):
    """`POST /plans/preview`: what plans there would be, and what the first would do under this load."""

    wanted: PlanRequest
    sequences: int = Field(default=1, ge=1, le=4_096)
    prompt_tokens: int = Field(default=128, ge=1, le=1 << 24)
    context_tokens: int = Field(default=1_024, ge=1, le=1 << 24)

    def load(self, *, window_tokens: int) -> Load:
        return Load(
            self.sequences,
            self.prompt_tokens,
            self.context_tokens,
            self.wanted.seating.verification,
            window_tokens,
        )


class PreviewResponse(Contract):
    pipelines: tuple[Pipeline, ...] = Field(min_length=1)
    """What new sessions would go by, best first; what follows is about the first."""
    prediction: Prediction
    quality: PlanQuality


class StageFileInfo(Contract):
    """`GET /models/{model_id}/stages/{start}-{end}/info`; without `/info` come the bytes, with Range."""

    model_id: ModelId
    model_root: str
    start: int
    end: int
    size_bytes: int
    stage_digest: str
    n_embd: int
    num_layers: int
