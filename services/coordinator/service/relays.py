"""Links that the coordinator carries itself: frames come in from one worker and go on to the next, and are witnessed.

To both workers it is a link like any other, to or from a neighbour with an id of its own: nothing else goes over it,
and the link that the two have for their other sessions is left alone. It serves one epoch of one session.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from services.coordinator.domain.witness import Witness
from services.coordinator.ports import Links
from services.coordinator.service.interfaces import RelaysInterface
from shared.contracts.frame import Frame, FrameKind, FrameReader, encode_frame
from shared.contracts.messages import Peer
from shared.domain.errors import ButterflyError, InvalidCredentials, PeerUnavailable, ProtocolViolation
from shared.domain.ids import NodeId, TaskId
from shared.domain.numerics import TILE_ROWS
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)

MAX_RELAYS = (
    32  # each is taken once, and holds two frames of a chunk at most; beyond, a dispute is decided without a witness
)
SILENCE_S = 15.0  # three keep-alive frames lost, or so long nothing taken by the receiver

_END = encode_frame(Frame(FrameKind.END))


@dataclass(frozen=True, slots=True)
class Detour:
    """What the two ends of a witnessed link are told."""

    witness: Witness
    next: Peer
    """Whom the sender sends to."""
    previous: Peer
    """Who sends to the receiver."""


class Relay:
    """One link. It is taken once; whatever must not pass ends it, and both ends notice."""

    def __init__(self, detour: Detour, *, receiver: NodeId, address: str, width: int, links: Links) -> None:
        """`address`: the receiver's; `width`: of a row."""
        self.detour = detour
        self._receiver, self._address, self._width = receiver, address, width
        self._links = links
        self._waiting = b""
        """A frame that the receiver has not been sent."""
        self._is_waiting, self._is_free = asyncio.Event(), asyncio.Event()
        self._has_ended = False
        self._is_taken = self._is_closed = False
        self._limit: asyncio.Timeout | None = None

    async def carry(self, chunks: AsyncIterator[bytes], tasks: BackgroundTasks) -> None:
        """Pass on what comes until the sender ends the link or the relay is closed. One frame is held at most: a
        receiver that takes nothing holds up the sender.

        Raises `ProtocolViolation`, `PeerUnavailable` (one of the two is silent, or the receiver is gone).
        """
        if self._is_taken or self._is_closed:
            raise ProtocolViolation("this link was taken before")
        self._is_taken = True
        _ = tasks.start(self._deliver(), name=f"relay to {self._receiver}")
        try:
            async with asyncio.timeout(SILENCE_S) as self._limit:
                await self._take(chunks)
        except TimeoutError:
            if not self._is_closed:
                raise PeerUnavailable("the link was silent, or the receiver takes nothing") from None
        finally:
            if self._is_closed:
                self._waiting = _END
            self._has_ended = True
            self._is_waiting.set()

    def close(self) -> None:
        """The epoch is over: end the link, as if the sender had."""
        self._is_closed = True
        self._stop()

    def _stop(self) -> None:
        if self._limit is not None and not self._has_ended and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def _take(self, chunks: AsyncIterator[bytes]) -> None:
        reader = FrameReader(max_payload_bytes=TILE_ROWS * self._width * 4)
        loop = asyncio.get_running_loop()
        async for chunk in chunks:
            for frame in reader.feed(chunk):
                if frame.kind not in {FrameKind.KEEP_ALIVE, FrameKind.END}:
                    self._see(frame)
                await self._pass_on(encode_frame(frame))
                if frame.kind is FrameKind.END:
                    return
            if self._limit is not None and not self._is_closed:
                self._limit.reschedule(loop.time() + SILENCE_S)

    def _see(self, frame: Frame) -> None:
        witness, hidden = self.detour.witness, frame.hidden
        place = (frame.lane, frame.stage, *((row.task_id, row.epoch) for row in frame.rows))
        if place != (witness.hop.lane, witness.hop.stage, (witness.task_id, witness.epoch)):
            raise ProtocolViolation("rows for another seat than that of this link")
        is_chunk = frame.kind is FrameKind.PREFILL  # other rows come alone
        if hidden is None or hidden.width != self._width or not (is_chunk or len(hidden) == 1):
            raise ProtocolViolation(f"a {frame.kind} frame that does not hold rows of {self._width} as it should")
        witness.take(frame.rows[0].position, tuple(hidden))

    async def _pass_on(self, data: bytes) -> None:
        """Returns once it is on its way: only then the next one is read."""
        self._waiting = data
        self._is_free.clear()
        self._is_waiting.set()
        await self._is_free.wait()

    async def _deliver(self) -> None:
        try:
            await self._links.carry(self._receiver, self._address, self.detour.previous.link_token, self._frames())
        except ButterflyError as error:
            log.warning("relay_broken", extra={"to": self._receiver, "reason": error.message})
        self._stop()

    async def _frames(self) -> AsyncIterator[bytes]:
        while True:
            await self._is_waiting.wait()
            self._is_waiting.clear()
            data, self._waiting = self._waiting, b""
            self._is_free.set()
            if data:
                yield data
            if self._has_ended and not self._waiting:
                return


class Relays(RelaysInterface):
    def __init__(self, *, links: Links, tasks: BackgroundTasks, new_token: Callable[[], str], name: str) -> None:
        """`new_token`: a fresh secret at each call. `name`: of this replica, told apart by it from the others to which
        the same workers may have such links; the same in its next run, for workers keep a client for each."""
        self._links = links
        self._tasks = tasks
        self._new_token = new_token
        self._name = name
        self._relays: dict[NodeId, Relay] = {}
        """By the id that stands for the neighbour. Few ids, used again: workers keep a client for each."""
        self._by_token: dict[str, Relay] = {}

    def open(self, witness: Witness, *, own_address: str, receiver_address: str, width: int) -> Detour | None:
        """A way around for the link of `witness.hop`; None when there are too many. `own_address`: URL at which the
        sender reaches the coordinator; `width`: of a row."""
        free = (NodeId(f"coordinator/{self._name}/{number}") for number in itertools.count())
        if len(self._relays) >= MAX_RELAYS:
            return None
        relay_id = next(each for each in free if each not in self._relays)
        detour = Detour(
            witness,
            next=Peer(node_id=relay_id, address=own_address, link_token=self._new_token()),
            previous=Peer(node_id=relay_id, address=own_address, link_token=self._new_token()),
        )
        relay = Relay(detour, receiver=witness.hop.receiver, address=receiver_address, width=width, links=self._links)
        self._relays[relay_id] = self._by_token[detour.next.link_token] = relay
        return detour

    def close(self, detour: Detour) -> None:
        """Idempotent."""
        relay = self._by_token.pop(detour.next.link_token, None)
        if relay is not None:
            del self._relays[detour.next.node_id]
            relay.close()

    def close_all(self) -> None:
        """This process stops."""
        for relay in list(self._relays.values()):
            self.close(relay.detour)

    def beyond(self, relay_id: NodeId, one_end: NodeId) -> tuple[TaskId, NodeId] | None:
        """The session that this relay serves, and the node at its other end; None for what is no relay of that node."""
        relay = self._relays.get(relay_id)
        if relay is None:
            return None
        witness = relay.detour.witness
        others = {witness.hop.sender: witness.hop.receiver, witness.hop.receiver: witness.hop.sender}
        return (witness.task_id, others[one_end]) if one_end in others else None

    async def receive(self, token: str, chunks: AsyncIterator[bytes]) -> None:
        relay = self._by_token.get(token)
        if relay is None:
            raise InvalidCredentials("no session names this link")
        await relay.carry(chunks, self._tasks)
