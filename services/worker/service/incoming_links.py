"""Links from the stages before: who may send here, and what becomes of what they send."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

from services.worker.ports import ReportTo
from services.worker.service.seating import Seating
from shared.contracts.frame import Frame, FrameKind, FrameReader
from shared.contracts.messages import LinkFault, Peer
from shared.domain.errors import InvalidCredentials, ProtocolViolation, Unavailable
from shared.domain.ids import NodeId
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

SILENCE_S = 15.0  # three keep-alive frames lost
ASSIGNMENT_PATIENCE_S = 5.0  # a neighbour may have its assignment before this worker has
MAX_STRANGERS = 64
MAX_LINKS = 64  # each holds a part of a frame; more neighbours than that feed no worker's seats at once

Take = Callable[[NodeId, Sequence[Frame]], None]


class _OpenLink:
    def __init__(self, limit: asyncio.Timeout) -> None:
        self._limit = limit
        self.silent_turns = 0

    def end(self) -> None:
        """Whoever reads it gets `TimeoutError`. Idempotent."""
        if not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())


class IncomingLinks:
    """One link per peer. Nothing is answered on it while it is open. What must not be closes it and is reported."""

    def __init__(
        self,
        *,
        take: Take,
        max_payload_bytes: Callable[[], int],
        seating: Seating,
        report: ReportTo,
        clock: Clock,
    ) -> None:
        """`take` takes in frames from a peer; it raises `ProtocolViolation`. `max_payload_bytes`: of a frame, as far as
        is known now; it never shrinks."""
        self._take = take
        self._max_payload_bytes = max_payload_bytes
        self._seating = seating
        self._report = report
        self._clock = clock
        self._open: dict[NodeId, _OpenLink] = {}
        """The newest link of each peer, the one opened first at the front."""
        self._tokens: dict[NodeId, str] = {}
        self._senders: dict[str, NodeId] = {}
        """Link token -> the node that may use it."""
        self._strangers: dict[str, list[asyncio.Future[NodeId]]] = {}
        self._is_closing = False

    @property
    def peers(self) -> Sequence[NodeId]:
        return tuple(self._open)

    def expect(self, peer: Peer) -> None:
        """`peer` will send to this worker, or does already. A token that it had before opens no link any more."""
        former = self._tokens.get(peer.node_id)
        if former is not None and former != peer.link_token:
            self._senders.pop(former, None)
        self._tokens[peer.node_id] = peer.link_token
        self._senders[peer.link_token] = peer.node_id
        for waiting in self._strangers.pop(peer.link_token, ()):
            if not waiting.done():
                waiting.set_result(peer.node_id)

    async def receive(self, token: str, chunks: AsyncIterator[bytes]) -> None:
        """Take in a neighbour's link until it ends, or the neighbour opens another. `chunks` ends early when the
        connection breaks.

        Raises `InvalidCredentials` (no assignment named this token in time), `Unavailable` (too many links),
        `ProtocolViolation`.
        """
        peer = await self._sender(token)
        link: _OpenLink | None = None
        is_refused = False
        reason: str | None = "the link ended without an end frame"
        try:
            async with asyncio.timeout(None) as limit:
                link = self._opened(peer, limit)
                if await self._read(peer, link, chunks):
                    reason = None
        except TimeoutError:
            reason = None if self._is_closing else f"silent for {SILENCE_S:.0f} s"
        except ProtocolViolation as error:
            reason, is_refused = error.message, True
            raise
        finally:
            if link is not None and self._open.get(peer) is link:
                del self._open[peer]
                if reason is not None:
                    self._lost(peer, reason, is_refused=is_refused)

    async def watch(self) -> None:
        """One turn of the loop that ends silent links. Cheaper than a time limit around every chunk."""
        await self._clock.sleep(SILENCE_S / 3)
        for link in self._open.values():
            if link.silent_turns >= 3:
                link.end()
            link.silent_turns += 1

    def close(self) -> None:
        """End every link: this worker stops."""
        self._is_closing = True
        for link in self._open.values():
            link.end()

    def _opened(self, peer: NodeId, limit: asyncio.Timeout) -> _OpenLink:
        """The peer's only link from now on: an older one is no loss. Raises `Unavailable`."""
        older = self._open.pop(peer, None)
        if older is not None:
            older.end()
        elif len(self._open) >= MAX_LINKS:
            self._end_idle()
        link = self._open[peer] = _OpenLink(limit)
        return link

    def _end_idle(self) -> None:
        """End the oldest link of a peer that feeds no seat: one that may still have use must find room."""
        in_use = {one.seat.previous for one in self._seating}
        idle = next((peer for peer in self._open if peer not in in_use), None)
        if idle is None:
            raise Unavailable(f"{MAX_LINKS} links are in use", retry_after_s=ASSIGNMENT_PATIENCE_S)
        self._open.pop(idle).end()

    async def _read(self, peer: NodeId, link: _OpenLink, chunks: AsyncIterator[bytes]) -> bool:
        """True when the peer ended the link with an end frame."""
        reader = FrameReader()
        async for chunk in chunks:
            link.silent_turns = 0
            reader.max_payload_bytes = self._max_payload_bytes()
            frames = reader.feed(chunk)
            self._take(peer, frames)
            if self._is_closing or any(frame.kind is FrameKind.END for frame in frames):
                return True
        return False

    async def _sender(self, token: str) -> NodeId:
        known = self._senders.get(token)
        if known is not None:
            return known
        if sum(map(len, self._strangers.values())) >= MAX_STRANGERS:
            raise Unavailable("too many links wait for their assignment", retry_after_s=ASSIGNMENT_PATIENCE_S)
        waiting: asyncio.Future[NodeId] = asyncio.get_running_loop().create_future()
        self._strangers.setdefault(token, []).append(waiting)
        try:
            async with asyncio.timeout(ASSIGNMENT_PATIENCE_S):
                return await waiting
        except TimeoutError:
            raise InvalidCredentials("no assignment names this link") from None
        finally:
            if waiting in (left := self._strangers.get(token, [])):
                left.remove(waiting)
                if not left:
                    del self._strangers[token]

    def _lost(self, peer: NodeId, reason: str, *, is_refused: bool) -> None:
        seats = [one.seat for one in self._seating if one.seat.previous == peer]
        log.warning("link_lost", extra={"from": peer, "reason": reason, "seats": len(seats)})
        if seats:
            kind: Literal["broken", "refused"] = "refused" if is_refused else "broken"
            self._report(LinkFault(peer=peer, outgoing=False, kind=kind, reason=reason[:500]), None)
        for seat in seats:
            self._seating.free(seat, keep=True)
