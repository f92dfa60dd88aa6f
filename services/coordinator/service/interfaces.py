"""What the coordinator does for others: the contract of each use case."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping

from shared.contracts.coordinator import (
    CoordinatorState,
    EvidenceList,
    NodeList,
    OpenSession,
    Place,
    PublicKeys,
    Registered,
    RegisterNode,
)
from shared.contracts.messages import (
    Ack,
    DraftTokens,
    Heartbeat,
    Leave,
    LinkFault,
    NodeMeasured,
    ReceiptPosted,
    SeatReady,
    SessionFault,
    StageReady,
)
from shared.domain.ids import NodeId, TaskId

FromWorker = (
    StageReady | SeatReady | DraftTokens | ReceiptPosted | SessionFault | LinkFault | NodeMeasured | Heartbeat | Leave
)


class MembershipInterface(ABC):
    @abstractmethod
    async def register(self, join_token: str, node: RegisterNode) -> Registered:
        """Admit a node, or a new run of one: then the sessions on its earlier run recover.

        Tokens given before to this node end. Raises `InvalidCredentials`, `InvalidInput` (a capability or an
        address that no node has, a proof of something else), `Forbidden` (evicted), `NoCapacity` (too many nodes),
        `RegistryUnavailable`.
        """

    @abstractmethod
    def nodes(self, *, with_stage_times: bool = False) -> NodeList:
        """The registered nodes, and the evicted ones; one whose lease is over is not among them. `with_stage_times`:
        with all that predictions go by, and not only what plans do."""

    @abstractmethod
    def keys(self) -> PublicKeys:
        """The coordinator's and the registered nodes'."""

    @abstractmethod
    async def drain(self, node_id: NodeId) -> None:
        """No new seats on this node, at every replica within a second; its running sessions go on. Idempotent.

        Raises `NodeNotFound`, `RegistryUnavailable` (nothing has changed).
        """

    @abstractmethod
    async def resume(self, node_id: NodeId) -> None:
        """Undo `drain`. Raises `NodeNotFound` (neither here nor drained), `RegistryUnavailable` (nothing changed)."""

    @abstractmethod
    async def quarantine(self, node_id: NodeId, reason: str, *, until_reinstated: bool = False) -> None:
        """No new seats on this node; its running sessions go on. It returns by itself, later each time, unless
        `until_reinstated`. Idempotent.

        Raises `NodeNotFound`, `RegistryUnavailable` (it holds, until this process ends).
        """

    @abstractmethod
    async def reinstate(self, node_id: NodeId) -> None:
        """End a quarantine or an eviction. Raises `NodeNotFound` (nothing to end), `RegistryUnavailable` (nothing has
        changed)."""


class MeasuringInterface(ABC):
    @abstractmethod
    async def demand(self, node_id: NodeId) -> None:
        """Have this node measured anew, all of it, once nobody needs it. Idempotent.

        Raises `NodeNotFound`, `InvalidInput` (this cluster goes by what nodes declare), `RegistryUnavailable`.
        """


class RelaysInterface(ABC):
    @abstractmethod
    async def receive(self, token: str, chunks: AsyncIterator[bytes]) -> None:
        """Take a worker's link and pass on what comes over it, until it ends. `chunks` ends early when the connection
        breaks.

        Raises `InvalidCredentials` (no session names this token), `ProtocolViolation` (what must not pass),
        `PeerUnavailable` (silence, or the receiver is gone).
        """


class EvidenceInterface(ABC):
    @abstractmethod
    async def list(self) -> EvidenceList:
        """What is kept, at most `ports.MAX_EVIDENCE_LISTED`. Raises `RegistryUnavailable`."""

    @abstractmethod
    async def find(self, evidence_id: str) -> Mapping[str, object]:
        """What proves a node guilty (`domain.evidence`). Raises `EvidenceNotFound`, `RegistryUnavailable`."""


class SessionsInterface(ABC):
    @abstractmethod
    async def open(self, wanted: OpenSession) -> None:
        """Begin to run a task by a plan; returns once the session has its epoch, it then goes on by itself.

        The same task and attempt again: nothing more. Raises `NoCapacity` (before an epoch is taken),
        `InvalidPlanInput`, `StaleAttempt`, `InvalidTransition`, `TaskNotFound`, `ServerDraining`,
        `RegistryUnavailable`, `PeerUnavailable` (the partitioner).
        """

    @abstractmethod
    def cancel(self, task_id: TaskId) -> None:
        """Free the seats of a task that the registry has cancelled. Idempotent; unknown tasks are none of ours."""

    @abstractmethod
    def state(self) -> CoordinatorState:
        """Counts."""


class PlacementsInterface(ABC):
    @abstractmethod
    async def place(self, wanted: Place) -> None:
        """Have the plan's stages loaded; returns when every worker was told. Raises `NoCapacity`, `PeerUnavailable`."""


class MessagesInterface(ABC):
    @abstractmethod
    async def handle(self, node_token: str, message: FromWorker) -> Ack:
        """Take a worker's message. Idempotent.

        Raises `NodeNotFound` (unknown token: register again), `StaleEpoch`, `Forbidden` (a seat it does not hold),
        `ProtocolViolation`; a node with too many of those is put in quarantine.
        """

    @abstractmethod
    async def unreadable(self, node_token: str) -> None:
        """What came from a worker is no message. Raises `NodeNotFound`."""
