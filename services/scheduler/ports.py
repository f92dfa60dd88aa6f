"""What the scheduler needs from outside: plans and the nodes that run them. (The registry: `shared.registry.base`.)"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from services.scheduler.domain.capacity import ReadyNode
from shared.contracts.coordinator import OpenSession
from shared.domain.ids import ModelId, TaskId
from shared.domain.plan import NodeCapability, PartitionPlan, Pipeline, Seating


class Partitioner(ABC):
    """Every call may raise `PeerUnavailable`."""

    @abstractmethod
    async def plan(self, model_id: ModelId, nodes: Sequence[NodeCapability], seating: Seating) -> PartitionPlan:
        """A plan over `nodes`, whatever runs on them now, with all lanes of `seating`.

        Raises `NoCapacity`, `VerificationUnavailable` (not with these nodes), `InvalidPlanInput`, `ModelNotFound`,
        `UnsupportedModel`.
        """

    @abstractmethod
    async def pipelines(
        self, model_id: ModelId, nodes: Sequence[NodeCapability], seating: Seating
    ) -> tuple[Pipeline, ...]:
        """The plans that new sessions are to go by now, at least one, the best first. Raises as `plan`."""

    @abstractmethod
    async def model_ids(self) -> frozenset[ModelId]:
        """The models of the catalogue."""


class Coordinator(ABC):
    """Every call may raise `PeerUnavailable`."""

    @abstractmethod
    async def ready_nodes(self) -> tuple[ReadyNode, ...]:
        """Nodes that take new sessions now, in order of node id."""

    @abstractmethod
    async def present_nodes(self) -> tuple[NodeCapability, ...]:
        """Beside the ready ones those that were late with their last word, in order of node id."""

    @abstractmethod
    async def open_session(self, wanted: OpenSession) -> None:
        """Returns once the session has its epoch; the same task and attempt again change nothing.

        Raises `NoCapacity`, `InvalidPlanInput`, `StaleAttempt`, `InvalidTransition`, `TaskNotFound`, `ServerDraining`,
        `RegistryUnavailable`.
        """

    @abstractmethod
    async def cancel_session(self, task_id: TaskId) -> None:
        """The registry has ended this task: free its seats. Idempotent, also for tasks without a session."""

    @abstractmethod
    async def place(self, plan: PartitionPlan) -> None:
        """Load the plan's stages now. Raises `NoCapacity`."""
