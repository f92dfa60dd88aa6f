"""Bodies of the routes that ask about plans. They refuse what they do not know."""

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from services.api.domain.wanted import GivenPlan, WantedPlan
from services.api.schemas import Strict
from services.api.task_schemas import terms_of_verification
from shared.domain.ids import ModelId, NodeId
from shared.domain.plan import Lane, LayerRange, Objective, Partition
from shared.domain.plan_figures import Load

MAX_LANES: Final = 1_023
MAX_STAGES: Final = 1_024
Name = Annotated[str, Field(min_length=1, max_length=512)]


class PreviewBody(Strict):
    """`POST /v1/plans/preview`."""

    model_config = ConfigDict(extra="forbid")

    model: Name
    strategy: Name | None = None
    objective: Literal["latency", "throughput"] | None = None
    stages: int | None = Field(default=None, ge=1, le=MAX_STAGES)
    verification: object = None
    sequences: int = Field(default=1, ge=1, le=4_096)
    prompt_tokens: int = Field(default=128, ge=1, le=1 << 24)
    context_tokens: int = Field(default=1_024, ge=1, le=1 << 24)

    def to_wanted(self) -> WantedPlan:
        return WantedPlan(
            model_id=ModelId(self.model),
            terms=terms_of_verification(self.verification),
            load=Load(self.sequences, self.prompt_tokens, self.context_tokens),
            strategy=self.strategy,
            objective=None if self.objective is None else Objective(self.objective),
            num_stages=self.stages,
        )


class SeatBody(Strict):
    """Layers [start, end) on a node."""

    model_config = ConfigDict(extra="forbid")

    node_id: Name
    start: int = Field(ge=0)
    end: int = Field(ge=1)


class QualityBody(Strict):
    """`POST /v1/plans/quality`: lanes as a preview shows them, each from the first layer to the last."""

    model_config = ConfigDict(extra="forbid")

    model: Name
    lanes: Annotated[
        list[Annotated[list[SeatBody], Field(min_length=1, max_length=MAX_STAGES)]],
        Field(min_length=1, max_length=MAX_LANES),
    ]

    def to_given(self) -> GivenPlan:
        return GivenPlan(
            ModelId(self.model),
            tuple(
                Lane(
                    index,
                    tuple(
                        Partition(stage, NodeId(seat.node_id), LayerRange(seat.start, seat.end))
                        for stage, seat in enumerate(seats)
                    ),
                )
                for index, seats in enumerate(self.lanes)
            ),
        )
