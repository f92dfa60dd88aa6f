"""What the worker needs from outside: stage files, an engine per stage, links to its neighbours, the coordinator."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.contracts.coordinator import Registered, RegisterNode
from shared.contracts.messages import (
    Ack,
    DraftTokens,
    Heartbeat,
    Leave,
    LinkFault,
    NodeMeasured,
    Peer,
    ReceiptPosted,
    SeatReady,
    SessionFault,
    StageReady,
    StageRef,
)
from shared.contracts.partitioner import StageFileInfo
from shared.domain.errors import ButterflyError
from shared.domain.numerics import Profile, StageFacts
from shared.domain.receipt import Receipt
from shared.domain.signing import Signed

Ints = NDArray[np.int32]
Rows = NDArray[np.float32]
Mask = NDArray[np.bool_]

Report = (
    StageReady | SeatReady | DraftTokens | ReceiptPosted | SessionFault | LinkFault | NodeMeasured | Heartbeat | Leave
)

ReportTo = Callable[[Report, str | None], None]
"""Sends a report on its way to the coordinator with this URL: what is about a seat goes to the one that gave the order
for it. None: to every coordinator."""


@dataclass(frozen=True, slots=True)
class StageFile:
    path: Path
    stage_digest: str
    size_bytes: int


class StageSource(ABC):
    """Where stage files come from."""

    @abstractmethod
    async def info(self, ref: StageRef) -> StageFileInfo:
        """Size and digest of a stage's file. Raises `ModelNotFound`, `UnsupportedModel`, `Unavailable`."""

    @abstractmethod
    def download(self, ref: StageRef, *, start: int) -> AsyncIterator[bytes]:
        """The file's bytes from `start` on. Raises `PeerUnavailable` when they stop coming."""


class StageFiles(ABC):
    @abstractmethod
    async def fetch(self, ref: StageRef) -> StageFile:
        """The file of a stage, here and with the right digest. Calls may overlap.

        Raises `Unavailable` (try again later), `ModelNotFound`, `UnsupportedModel`, `BadModelFile` (the bytes are not
        what they should be).
        """


class StageEngine(Protocol):
    """The calls of a loaded `engine.base.Engine` that the ring makes; that class documents them."""

    def forward(self, x: Ints | Rows, slots: Ints, positions: Ints, want: Mask | None = None) -> Rows: ...

    def copy(self, src: int, dst: int) -> None: ...

    def truncate(self, slot: int, n_rows: int) -> None: ...

    def drop(self, slot: int) -> None: ...

    def set_threads(self, n_threads: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    engine: StageEngine
    n_embd: int
    n_vocab: int | None
    """Known to the first and the last stage only."""
    numerics_class: str
    profile: Profile
    small_rows: int | None
    """As in `engine.base.StageInfo`."""
    self_test_digest: str
    kv_bytes_per_row: int

    @property
    def facts(self) -> StageFacts:
        return StageFacts(self.numerics_class, self.self_test_digest, self.profile, self.small_rows)


@dataclass(frozen=True, slots=True)
class TrialStage:
    """A middle stage of no model, equal on every node, to compare nodes by."""

    engine: StageEngine
    n_embd: int
    n_slots: int
    layer_bytes: int
    """Weights of its layers."""


class EngineLoader(ABC):
    @abstractmethod
    def load(self, ref: StageRef, file: StageFile, *, n_slots: int, ctx_per_slot: int) -> LoadedEngine:
        """Load a stage; blocks for seconds, called in a thread of its own. Calls do not overlap.

        Raises `UnsupportedModel`, `SelfTestFailed`, `OutOfMemory`, `AbiMismatch`, `MissingLibrary`.
        """

    @abstractmethod
    def load_trial(self) -> TrialStage:
        """Load the stage that every node is tried on; blocks for a part of a second. The caller closes its engine.

        Raises `OutOfMemory`, `UnsupportedModel`.
        """


class ReceiptSigner(ABC):
    @abstractmethod
    def sign(self, receipt: Receipt) -> Signed:
        """The signed text of a receipt, of kind `receipt`. Called once for each window of a seat, in order."""


class LinkCarrier(ABC):
    @abstractmethod
    async def carry(self, peer: Peer, chunks: AsyncIterator[bytes]) -> None:
        """Send `chunks` to `peer` in one long request; the first is asked for once the connection is there.

        Returns when `chunks` ended and the peer took them all. Raises `PeerUnavailable`, `CircuitOpen`, or what the
        peer answered.
        """


class JoinRefused(ButterflyError):
    """The coordinator does not want this worker, or there is none at its address: to ask again would not help."""

    code = "join_refused"


class Coordinator(ABC):
    """Calls may overlap. All raise `PeerUnavailable`, `CircuitOpen`, or what the coordinator answered."""

    @abstractmethod
    async def register(self, request: RegisterNode) -> Registered:
        """Join the cluster; later reports carry the token that comes back. Raises `JoinRefused`."""

    @abstractmethod
    async def tell(self, report: Report) -> Ack:
        """Deliver one message. Raises `NodeNotFound` or `InvalidCredentials` when this node must register anew."""
