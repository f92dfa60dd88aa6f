"""What the partitioner needs from outside: somewhere that holds models, and somewhere to keep its plans."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from shared.domain.ids import ModelId
from shared.domain.layers import ModelInfo
from shared.domain.plan import PartitionPlan, PlanInput
from shared.llama.cutting import StageFile


@dataclass(frozen=True, slots=True)
class Refused:
    file: str
    reason: str


class ModelStore(ABC):
    """The models that can be served. Methods marked *blocking* read files: call them in a thread."""

    @abstractmethod
    def scan(self) -> None:
        """Blocking. Look for new, changed and removed files; reads headers only. Calls must not overlap."""

    @abstractmethod
    def is_current(self, model_id: ModelId) -> bool:
        """Whether the model is known and its file is still the one that was scanned: one look at the file's times."""

    @abstractmethod
    def models(self) -> tuple[ModelInfo, ...]:
        """All that can be served now, in order of id."""

    @abstractmethod
    def refused(self) -> tuple[Refused, ...]:
        """Files that cannot be served, and why."""

    @abstractmethod
    def pending(self) -> tuple[ModelId, ...]:
        """Models whose digests are not known yet."""

    @abstractmethod
    def complete(self, model_id: ModelId) -> None:
        """Blocking, as long as reading the whole file takes. Find out a pending model's digests and keep them.

        Raises `ModelNotFound`, and `BadModelFile` when the file changed meanwhile: scan again.
        """

    @abstractmethod
    def model(self, model_id: ModelId) -> ModelInfo | None:
        """None when it is unknown or pending."""

    @abstractmethod
    def stage(self, model_id: ModelId, start: int, end: int) -> StageFile:
        """Blocking. The stage file of layers [start, end). Raises as `cut_stage`, and `ModelNotFound`."""

    @abstractmethod
    def vocabulary(self, model_id: ModelId) -> StageFile:
        """Blocking. A GGUF file with all keys and no tensors. Raises `ModelNotFound`."""

    @abstractmethod
    def token_table(self, model_id: ModelId) -> bytes:
        """Blocking. The table of `shared.llama.token_table`. Raises `ModelNotFound`, `UnsupportedModel`."""


class PlanCache(ABC):
    @abstractmethod
    def get(self, wanted: PlanInput) -> PartitionPlan | None:
        """The plan kept for an equal input, or for one whose nodes' speeds differ too little to matter; else None."""

    @abstractmethod
    def put(self, wanted: PlanInput, plan: PartitionPlan) -> None:
        """Keep `plan`; may drop another one to make room."""

    @abstractmethod
    def forget(self, model_id: ModelId | None) -> int:
        """Drop the plans of one model, or all for None; returns how many there were."""
