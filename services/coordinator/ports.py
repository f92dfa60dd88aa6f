"""What the coordinator needs from outside: its workers, links to them, stores, and the partitioner. (The registry:
`shared.registry.base`.)"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence

from services.coordinator.domain.profile import NodeProfile
from services.coordinator.domain.replica import Replica
from services.coordinator.domain.standing import Standing
from services.coordinator.domain.token_table import TokenTable
from shared.contracts.messages import (
    LoadStage,
    MeasureNode,
    MeetPeers,
    SealWindow,
    SessionStart,
    SessionStop,
    WindowCommitted,
    WindowRelease,
    WorkAssignment,
)
from shared.domain.ids import ModelId, NodeId
from shared.domain.layers import ModelInfo
from shared.domain.numerics import StageFacts
from shared.domain.plan import NodeCapability, PartitionPlan, Seating

MAX_EVIDENCE_LISTED = 1_000


class Worker(ABC):
    """One run of one node. Every call may raise what the worker answers, or `PeerUnavailable`; calls may overlap and
    may arrive twice."""

    @abstractmethod
    async def load(self, message: LoadStage) -> StageFacts | None:
        """What the node says of the stage, if it is loaded; None: `StageReady` follows."""

    @abstractmethod
    async def assign(self, message: WorkAssignment) -> bool:
        """Whether the seat is ready; False: `SeatReady` or `StageReady` follows."""

    @abstractmethod
    async def start(self, message: SessionStart) -> None:
        """Begin; for the worker of stage 0."""

    @abstractmethod
    async def tell(self, message: WindowRelease | SealWindow | WindowCommitted) -> None:
        """What became of a window, or is to be done with it."""

    @abstractmethod
    async def meet(self, message: MeetPeers) -> None:
        """Open links to others that will time them."""

    @abstractmethod
    async def measure(self, message: MeasureNode) -> bool:
        """Try how fast the node is; `NodeMeasured` follows. False: nothing is begun, for an earlier measuring is not
        over."""

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


class Links(ABC):
    @abstractmethod
    async def carry(self, node_id: NodeId, address: str, token: str, chunks: AsyncIterator[bytes]) -> None:
        """Send `chunks` to a worker in one long request, as one of its neighbours would; `token` is the link's bearer.

        Returns when `chunks` ended and the worker took them all. Raises `PeerUnavailable`, `CircuitOpen`, or what the
        worker answered.
        """


class Replicas(ABC):
    """The coordinators that are here, each for as long as it says so. Every call raises `RegistryUnavailable` when the
    store does not answer."""

    @abstractmethod
    async def announce(self, replica: Replica, *, lease_s: float) -> tuple[Replica, ...]:
        """This one is here for so long. Returns all that are, it among them, by address, then boot id."""

    @abstractmethod
    async def withdraw(self, replica: Replica) -> None:
        """This one is here no longer; unknown is no error."""


class Standings(ABC):
    """Who may not serve, and who gets no new work, kept for good and shared by all replicas.

    Every call raises `RegistryUnavailable` when the store does not answer, and may arrive twice.
    """

    @abstractmethod
    async def all(self) -> tuple[Standing, ...]:
        """What is kept, one per node, in no order."""

    @abstractmethod
    async def put(self, standing: Standing) -> None:
        """Keep this in place of the node's earlier one, unless that is as strong: another replica may know more."""

    @abstractmethod
    async def remove(self, standing: Standing) -> None:
        """Nothing is kept of this node from now on, unless it is something stronger; nothing was is no error."""

    @abstractmethod
    async def drained(self) -> frozenset[NodeId]:
        """Whom an operator gives no new work."""

    @abstractmethod
    async def set_drained(self, node_id: NodeId, *, is_drained: bool) -> None:
        """Whether this node is one of them from now on."""


class Profiles(ABC):
    """What was measured of nodes, shared by all replicas. Every call raises `RegistryUnavailable` when the store does
    not answer."""

    @abstractmethod
    async def changes(self, since: int) -> tuple[tuple[int, NodeProfile], ...]:
        """Those that were put after `since`, and the number of that change, ascending. 0: all."""

    @abstractmethod
    async def put(self, profile: NodeProfile, *, after: int) -> int | None:
        """Keep this in place of the node's earlier one; returns the number of the change. None: it is not kept, for
        that one was put after the change `after`, the last that the caller knows of."""

    @abstractmethod
    async def remove(self, node_id: NodeId) -> None:
        """Keep nothing of this node. Idempotent; `changes` does not tell."""


class EvidenceStore(ABC):
    """What proves nodes guilty, kept for 90 days. Every call raises `RegistryUnavailable` when the store is away."""

    @abstractmethod
    async def put(self, evidence_id: str, evidence: Mapping[str, object]) -> None:
        """Keep it. The id is a hash of the content: the same again changes nothing."""

    @abstractmethod
    async def get(self, evidence_id: str) -> Mapping[str, object] | None:
        """None: never seen, or no longer kept."""

    @abstractmethod
    async def ids(self) -> tuple[str, ...]:
        """Of what is kept, in order, at most `MAX_EVIDENCE_LISTED`."""


class Partitioner(ABC):
    """Every call may raise `PeerUnavailable`."""

    @abstractmethod
    async def plan(
        self,
        model_id: ModelId,
        nodes: Sequence[NodeCapability],
        *,
        num_stages: int | None,
        seating: Seating,
    ) -> PartitionPlan:
        """A plan over `nodes`. Raises `NoCapacity`, `VerificationUnavailable`, `InvalidPlanInput`, `ModelNotFound`."""

    @abstractmethod
    async def model(self, model_id: ModelId) -> ModelInfo:
        """Raises `ModelNotFound`."""

    @abstractmethod
    async def token_table(self, model_id: ModelId) -> TokenTable:
        """The bytes of each token. Raises `ModelNotFound`, `ProtocolViolation`."""
