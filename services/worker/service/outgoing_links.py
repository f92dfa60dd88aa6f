"""Links to the next stages: one long request per neighbour, shared by all sessions.

A link that breaks is reported at once and not mended here: rows may be lost, so its sessions cannot go on in this
epoch. The coordinator decides; its next assignment opens the link anew.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from services.worker.ports import LinkCarrier, ReportTo
from services.worker.service.seating import Seating
from shared.contracts.frame import Frame, FrameKind, encode_frame
from shared.contracts.messages import LinkFault, Peer
from shared.domain.errors import ButterflyError, PeerUnavailable
from shared.domain.ids import NodeId
from shared.events.catalogue import BytesTransferred
from shared.events.publisher import Publisher
from shared.runtime.clock import Clock
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 5.0
MAX_QUEUED_BYTES = 64 * 1024 * 1024  # end-to-end flow control keeps a healthy link far below

_KEEP_ALIVE = encode_frame(Frame(FrameKind.KEEP_ALIVE))
_END = encode_frame(Frame(FrameKind.END))


class OutgoingLink:
    """What waits to be sent to one peer. `chunks` is the body of the request."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.sent_bytes = 0
        self.is_open = True
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._was_silent = False

    def send(self, data: bytes) -> None:
        """Raises `PeerUnavailable` when the peer has taken nothing for so long that the queue is full."""
        if self._queued_bytes + len(data) > MAX_QUEUED_BYTES:
            raise PeerUnavailable(f"{self._queued_bytes} bytes wait for {self.peer.node_id}")
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._was_silent = False
        self._wake.set()

    def keep_alive(self) -> None:
        """Called every `KEEP_ALIVE_S`: says something if nothing was sent since the last call."""
        if self._was_silent:
            self.send(_KEEP_ALIVE)
        self._was_silent = True

    def end(self) -> None:
        """Close after what waits, with an end frame."""
        self._queue.append(_END)
        self.is_open = False
        self._wake.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            await self._wake.wait()
            self._wake.clear()
            data = self._queue[0] if len(self._queue) == 1 else b"".join(self._queue)
            self._queue.clear()
            self._queued_bytes = 0
            self.sent_bytes += len(data)
            yield data
            if not self.is_open and not self._queue:
                return


class OutgoingLinks:
    def __init__(
        self,
        *,
        node_id: NodeId,
        carrier: LinkCarrier,
        seating: Seating,
        report: ReportTo,
        tasks: BackgroundTasks,
        clock: Clock,
        events: Publisher,
    ) -> None:
        self._node_id = node_id
        self._carrier = carrier
        self._seating = seating
        self._report = report
        self._tasks = tasks
        self._clock = clock
        self._events = events
        self._links: dict[NodeId, OutgoingLink] = {}
        self._told_at_s = clock.now_s()

    @property
    def peers(self) -> Sequence[NodeId]:
        return tuple(self._links)

    def open(self, peer: Peer) -> None:
        """See to it that there is a link to `peer`; it is opened in the background.

        A link that is there says something: a peer that has gone meanwhile is noticed at the second write after that,
        the first row then, and not only by the next keep-alive.
        """
        link = self._links.get(peer.node_id)
        if link is not None:
            if link.peer == peer:
                self.send(peer.node_id, _KEEP_ALIVE)
                return
            link.end()
        link = self._links[peer.node_id] = OutgoingLink(peer)
        link.send(_KEEP_ALIVE)
        _ = self._tasks.start(self._carry(link), name=f"link to {peer.node_id}")

    def send(self, node_id: NodeId, data: bytes) -> None:
        """Put a frame on the link to `node_id`. Without a link it is dropped: the fault was reported before."""
        link = self._links.get(node_id)
        if link is None:
            return
        try:
            link.send(data)
        except PeerUnavailable as error:
            self._lost(link, error.message)

    async def keep_alive(self) -> None:
        """One turn of the loop that keeps silent links alive and tells how much was sent."""
        await self._clock.sleep(KEEP_ALIVE_S)
        now_s = self._clock.now_s()
        for link in list(self._links.values()):
            try:
                link.keep_alive()
            except PeerUnavailable as error:
                self._lost(link, error.message)
            self._tell_bytes(link, now_s - self._told_at_s)
        self._told_at_s = now_s

    def close(self) -> None:
        """End every link on purpose."""
        for link in self._links.values():
            link.end()
        self._links.clear()

    async def _carry(self, link: OutgoingLink) -> None:
        reason = "the peer ended the link"
        try:
            await self._carrier.carry(link.peer, link.chunks())
        except ButterflyError as error:
            reason = error.message
        self._lost(link, reason)

    def _lost(self, link: OutgoingLink, reason: str) -> None:
        peer = link.peer.node_id
        if self._links.get(peer) is not link:  # replaced or ended on purpose, or known to be lost
            return
        del self._links[peer]
        link.is_open = False
        seats = [one.seat for one in self._seating if one.seat.next == peer]
        log.warning("link_lost", extra={"to": peer, "reason": reason, "seats": len(seats)})
        if seats:
            self._report(LinkFault(peer=peer, outgoing=True, reason=reason[:500]), None)
        for seat in seats:
            self._seating.free(seat, keep=True)

    def _tell_bytes(self, link: OutgoingLink, over_s: float) -> None:
        if link.sent_bytes:
            sent = BytesTransferred(self._node_id, link.peer.node_id, link.sent_bytes, over_s * 1000, "stage")
            self._events.publish(sent)
            link.sent_bytes = 0
