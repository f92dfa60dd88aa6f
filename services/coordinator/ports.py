"""What the coordinator needs from outside: its workers, and the partitioner. (The registry: `shared.registry.base`.)"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from services.coordinator.domain.token_table import TokenTable
from shared.contracts.messages import LoadStage, SessionStart, SessionStop, WorkAssignment
from shared.domain.ids import ModelId, NodeId
from shared.domain.layers import ModelInfo
from shared.domain.plan import NodeCapability, PartitionPlan


class Worker(ABC):
    """One run of one node. Every call may raise what the worker answers, or `PeerUnavailable`; calls may overlap and
    may arrive twice."""

    @abstractmethod
    async def load(self, message: LoadStage) -> bool:
        """Whether the stage is loaded; False: `StageReady` follows."""

    @abstractmethod
    async def assign(self, message: WorkAssignment) -> bool:
        """Whether the seat is ready; False: `SeatReady` or `StageReady` follows."""

    @abstractmethod
    async def start(self, message: SessionStart) -> None:
        """Begin; for the worker of stage 0."""

    @abstractmethod
    async def stop(self, message: SessionStop) -> None:
        """Forget the session. One try: a worker that missed it is told again after its next heartbeat."""


class Workers(ABC):
    @abstractmethod
    def connect(self, node_id: NodeId, address: str, *, boot_id: str, token: str) -> Worker:
        """The worker that registered from `address`; `token` is the bearer it expects."""

    @abstractmethod
    async def forget(self, node_id: NodeId) -> None:
        """The node is gone: close its connections."""


class Partitioner(ABC):
    """Every call may raise `PeerUnavailable`."""

    @abstractmethod
    async def plan(
        self, model_id: ModelId, nodes: Sequence[NodeCapability], *, num_stages: int | None
    ) -> PartitionPlan:
        """A plan with lane 0 over `nodes`. Raises `NoCapacity`, `InvalidPlanInput`, `ModelNotFound`."""

    @abstractmethod
    async def model(self, model_id: ModelId) -> ModelInfo:
        """Raises `ModelNotFound`."""

    @abstractmethod
    async def token_table(self, model_id: ModelId) -> TokenTable:
        """The bytes of each token. Raises `ModelNotFound`, `ProtocolViolation`."""
