"""Times the way to other workers and back, over the links that rows take."""

import asyncio
import logging
import statistics
from collections.abc import Callable

from services.worker.service.ring import Send
from shared.contracts.frame import Frame, FrameKind, encode_frame
from shared.domain.errors import ProtocolViolation
from shared.domain.hidden import FLOAT_BYTES, HiddenRows
from shared.domain.ids import NodeId
from shared.domain.measured import PeerLink
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

SMALL_PROBES = 20
LARGE_PROBES = 4
PAUSE_S = 0.02
PAYLOAD_WIDTH = 1_024
PAYLOAD_BYTES = 64 * PAYLOAD_WIDTH * FLOAT_BYTES
"""Of a large probe, so of any: about one tile of a prompt."""
PATIENCE_S = 5.0
_LEAST_S = 1e-6


class LinkProbes:
    def __init__(self, *, send: Send, clock: Clock, new_number: Callable[[], int]) -> None:
        """`send` puts a frame on the link to a node. `new_number` draws below `frame.PROBE_NUMBERS` what no peer can
        guess: an answer before the probe has come would make the way look shorter than it is."""
        self._send, self._clock, self._new_number = send, clock, new_number
        self._waiting: dict[tuple[NodeId, int], asyncio.Future[None]] = {}
        self._answers_left: dict[NodeId, int] = {}
        """Probes of each peer that are still answered."""

    def expect(self, peer: NodeId) -> None:
        """A coordinator has `peer` time the way to this node: probes for that are answered, for no flow control bounds
        how many come."""
        self._answers_left[peer] = 1 + SMALL_PROBES + 2 * LARGE_PROBES

    def take(self, peer: NodeId, frame: Frame) -> None:
        """A probe came from `peer`: answer it, or hear the answer. What nobody expects is dropped. Raises
        `ProtocolViolation` for what no probe carries."""
        if frame.rows or (frame.hidden is not None and len(frame.hidden.data) > PAYLOAD_BYTES):
            raise ProtocolViolation("a probe carries no rows, and no more than a tile")
        if not frame.final:
            self._answer(peer, frame)
            return
        waiting = self._waiting.get((peer, frame.stage))
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _answer(self, peer: NodeId, probe: Frame) -> None:
        left = self._answers_left.pop(peer, 0)
        if left > 1:
            self._answers_left[peer] = left - 1
        if left:
            self._send(peer, encode_frame(Frame(FrameKind.PROBE, stage=probe.stage, final=True)))

    async def time(self, peer: NodeId) -> PeerLink | None:
        """Of the links to `peer` and from it; None when it does not answer in time."""
        payload = HiddenRows(bytes(PAYLOAD_BYTES), PAYLOAD_WIDTH)
        try:
            await self._there_and_back_s(peer, None)  # opens the links
            small_s = [await self._after_a_pause_s(peer) for _ in range(SMALL_PROBES)]
            quick_s = min([await self._there_and_back_s(peer, None) for _ in range(LARGE_PROBES)])
            large_s = min([await self._there_and_back_s(peer, payload) for _ in range(LARGE_PROBES)])
        except TimeoutError:
            log.info("peer_not_timed", extra={"peer": peer})
            return None
        bytes_per_s = PAYLOAD_BYTES / max(_LEAST_S, large_s - quick_s)
        return PeerLink(peer, rtt_s=statistics.median(small_s), bytes_per_s=bytes_per_s)

    async def _after_a_pause_s(self, peer: NodeId) -> float:
        """As rows go: at most one is under way between two nodes while a sequence decodes, and whom it reaches has
        slept."""
        await self._clock.sleep(PAUSE_S)
        return await self._there_and_back_s(peer, None)

    async def _there_and_back_s(self, peer: NodeId, payload: HiddenRows | None) -> float:
        number = self._new_number()
        waiting = self._waiting[peer, number] = asyncio.get_running_loop().create_future()
        frame = encode_frame(Frame(FrameKind.PROBE, stage=number, hidden=payload))
        began_s = self._clock.now_s()
        self._send(peer, frame)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await waiting
        finally:
            del self._waiting[peer, number]
        return self._clock.now_s() - began_s
