"""What the gateway needs from outside: the scheduler, the catalogue, the nodes, the tasks' records and streams."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from services.api.domain.chat_template import ChatMessage
from shared.contracts.coordinator import NodeView, PublicKeys
from shared.contracts.partitioner import PreviewRequest, PreviewResponse, QualityRequest
from shared.contracts.scheduler import CancelReply, QueueState, SubmitTask, Submitted
from shared.domain.ids import ModelId, TaskId
from shared.domain.layers import ModelInfo
from shared.domain.plan_figures import PlanQuality
from shared.domain.tail_audit import TailAudit
from shared.domain.task import TokenRecord
from shared.domain.task_state import TaskState
from shared.domain.window_entry import WindowEntry
from shared.registry.base import StreamEntry, TaskPage, TaskRecord


class Scheduler(ABC):
    """Calls may overlap and arrive twice. All raise `PeerUnavailable` when nobody answers."""

    @abstractmethod
    async def submit(self, submission: SubmitTask) -> Submitted:
        """Returns once the task is durable.

        Raises `QueueFull`, `QuotaExceeded`, `NoCapacity`, `IdempotencyKeyReused`, `VerificationUnavailable`.
        """

    @abstractmethod
    async def cancel(self, task_id: TaskId) -> CancelReply:
        """Stop the task, down to the workers, unless it has ended."""

    @abstractmethod
    async def renew(self, task_ids: Sequence[TaskId]) -> None:
        """Say that the clients of these attached tasks are still there."""

    @abstractmethod
    async def queue(self) -> QueueState:
        """What waits and what runs."""


class Catalogue(ABC):
    @abstractmethod
    async def models(self) -> tuple[ModelInfo, ...]:
        """Every model that is served, by id. Raises `PeerUnavailable`."""

    @abstractmethod
    async def model(self, model_id: ModelId) -> ModelInfo:
        """Raises `ModelNotFound`, `PeerUnavailable`."""


class Nodes(ABC):
    @abstractmethod
    async def nodes(self, *, with_stage_times: bool = False) -> tuple[NodeView, ...]:
        """Every node the coordinator knows, by id. Raises `PeerUnavailable`. `with_stage_times`: with what predictions
        go by, and plans do not."""

    @abstractmethod
    async def keys(self) -> PublicKeys:
        """What receipts are checked with. Raises `PeerUnavailable`."""


class Planner(ABC):
    """Both raise `InvalidPlanInput`, `UnsupportedModel`, `PeerUnavailable`."""

    @abstractmethod
    async def preview(self, wanted: PreviewRequest) -> PreviewResponse:
        """Raises `NoCapacity`, `VerificationUnavailable`."""

    @abstractmethod
    async def rate(self, given: QualityRequest) -> PlanQuality:
        """How good a plan is."""


class ModelVocabulary(ABC):
    """A model's vocabulary, ready to use. Encoding runs off the event loop; calls may overlap."""

    pieces: Sequence[bytes]
    """The bytes of every token, by id; empty for control tokens."""
    end_ids: tuple[int, ...]
    drops_leading_space: bool
    """Whether an answer's first text begins with a space that is not part of it."""
    longest_piece_bytes: int

    @abstractmethod
    async def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, with BOS where the model wants it; control tokens in it are not parsed."""

    @abstractmethod
    async def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Token ids of the messages in the model's chat template, up to where the assistant begins.

        Raises `NoChatTemplate`, `TemplateError`.
        """


class Vocabularies(ABC):
    @abstractmethod
    async def of(self, model: ModelInfo) -> ModelVocabulary:
        """Fetched and loaded at the first use. Raises `PeerUnavailable`, `EngineError`."""


class EntryStream(ABC):
    """The entries of one task's event stream, oldest first. One reader."""

    @abstractmethod
    async def next(self) -> StreamEntry:
        """The next entry, however long it takes; may be cancelled without loss.

        Raises `ServerDraining` when this process will not wait any longer.
        """


class TaskReader(ABC):
    """Reads tasks; writes nothing. Raises `RegistryUnavailable` when the store is away."""

    @abstractmethod
    async def record(self, task_id: TaskId) -> TaskRecord:
        """The task as it is now. Raises `TaskNotFound`."""

    @abstractmethod
    async def tokens(self, task_id: TaskId) -> tuple[TokenRecord, ...]:
        """Committed tokens. Raises `ResultExpired`."""

    @abstractmethod
    async def receipts(self, task_id: TaskId) -> tuple[WindowEntry, ...]:
        """What is kept of the windows, by window, then epoch. Raises `ResultExpired`."""

    @abstractmethod
    async def tail_audit(self, task_id: TaskId) -> TailAudit | None:
        """What the fresh audit of the answer signed, if there was one."""

    @abstractmethod
    async def page(
        self, *, owner: str, states: frozenset[TaskState], model_id: ModelId | None, limit: int, cursor: str | None
    ) -> TaskPage:
        """The owner's tasks, newest first; `states` empty: all. Raises `InvalidCursor`."""

    @abstractmethod
    def follow(self, task_id: TaskId, *, patient: bool) -> AbstractContextManager[EntryStream]:
        """The task's stream from its beginning.

        `patient`: while this process drains it goes on for the time that open answers have; else it ends at once.
        """


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    ready: bool
    error: str | None = None


class Services(ABC):
    @abstractmethod
    async def health(self) -> Mapping[str, ServiceHealth]:
        """Each control service by name, as it is now. Never raises."""
