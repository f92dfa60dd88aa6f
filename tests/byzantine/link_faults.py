"""Links that carry something else than the engine gave, or nothing. Plugged in by constructor, around honest ones."""

import asyncio
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import ClassVar

import numpy as np

from services.worker.domain.batching import hidden_of, rows_of
from services.worker.ports import LinkCarrier
from shared.contracts.frame import MAGIC, Frame, FrameReader, encode_frame
from shared.contracts.messages import Peer
from tests.byzantine.seat_watch import Place

DRIP_S = 0.5
GIBIBYTE = 1 << 30
SLIGHTLY = np.float32(1.001)


class LinkFault(ABC):
    spares_coordinator: ClassVar[bool] = False
    """Nothing false goes to who is no worker, as far as the liar can tell."""

    @abstractmethod
    def carry(self, frame: bytes, decoded: Frame, sent: int) -> AsyncIterator[bytes]:
        """The pieces that go out in place of a frame of the seat; `sent`: how many came before it."""


class Drip(LinkFault):
    """Slow-loris: a byte now and then."""

    async def carry(self, frame: bytes, decoded: Frame, sent: int) -> AsyncIterator[bytes]:
        for byte in frame:
            yield bytes([byte])
            await asyncio.sleep(DRIP_S)


class StopsEarly(LinkFault):
    """Sends what begins a window and never what ends it."""

    async def carry(self, frame: bytes, decoded: Frame, sent: int) -> AsyncIterator[bytes]:
        if sent < 3:
            yield frame


class NotFinite(LinkFault):
    """Rows of NaN, with a right checksum; tokens no vocabulary has."""

    async def carry(self, frame: bytes, decoded: Frame, sent: int) -> AsyncIterator[bytes]:
        if decoded.hidden is not None:
            yield encode_frame(replace(decoded, hidden=rows_of(np.full_like(hidden_of(decoded.hidden), np.nan))))
        else:
            yield encode_frame(replace(decoded, rows=tuple(replace(row, token_id=2**30) for row in decoded.rows)))


class Truncated(LinkFault):
    """Half a frame, then the next one."""

    async def carry(self, frame: bytes, decoded: Frame, sent: int) -> AsyncIterator[bytes]:
        yield frame[: len(frame) // 2]


class FrameBomb(LinkFault):
    """Announces a frame of several gigabytes and begins to send it."""

    async def carry(self, frame: bytes, decoded: Frame, sent: int) -> AsyncIterator[bytes]:
        yield struct.pack("<4sII", MAGIC, 1_000, 4 * GIBIBYTE - 1)
        for _ in range(64):
            yield bytes(1 << 20)


class Repeated(LinkFault):
    """Every frame twice, and the second time as if it came later."""

    async def carry(self, frame: bytes, decoded: Frame, sent: int) -> AsyncIterator[bytes]:
        yield frame
        yield encode_frame(
            replace(decoded, rows=tuple(replace(row, position=row.position + 7) for row in decoded.rows))
        )


class OtherRows(LinkFault):
    """Other rows than were computed and signed; around the ring other tokens than are drafted."""

    async def carry(self, frame: bytes, decoded: Frame, sent: int) -> AsyncIterator[bytes]:
        if decoded.hidden is not None:
            yield encode_frame(replace(decoded, hidden=rows_of(hidden_of(decoded.hidden) * SLIGHTLY)))
        else:
            rows = (row if row.token_id is None else replace(row, token_id=row.token_id ^ 1) for row in decoded.rows)
            yield encode_frame(replace(decoded, rows=tuple(rows)))


class OtherRowsUnseen(OtherRows):
    spares_coordinator = True


class FaultyCarrier(LinkCarrier):
    """Carries honestly but for the frames of one seat."""

    def __init__(self, honest: LinkCarrier, fault: LinkFault, place: Place) -> None:
        self._honest = honest
        self._fault = fault
        self._place = place
        self._sent = 0

    async def carry(self, peer: Peer, chunks: AsyncIterator[bytes]) -> None:
        is_spared = self._fault.spares_coordinator and not peer.node_id.startswith("node-")
        await self._honest.carry(peer, chunks if is_spared else self._altered(chunks))

    async def _altered(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        reader = FrameReader()
        async for chunk in chunks:
            for frame in reader.feed(chunk):
                encoded = encode_frame(frame)
                if not frame.rows or not self._place.lies_to(frame.lane, frame.stage):
                    yield encoded
                    continue
                self._place.tell(frame.rows[0].task_id, self._sent, "sent something else over its link")
                async for piece in self._fault.carry(encoded, frame, self._sent):
                    yield piece
                self._sent += 1
