"""Links that end in this process: the frames that came over them."""

import asyncio
from collections.abc import AsyncIterator

from services.coordinator.ports import Links
from shared.contracts.frame import Frame, FrameReader
from shared.domain.errors import PeerUnavailable
from shared.domain.ids import NodeId


class FakeLinks(Links):
    def __init__(self) -> None:
        self.opened: list[tuple[NodeId, str, str]] = []
        """Receiver, address and bearer of each."""
        self.frames: list[Frame] = []
        self.ended = 0
        self.is_away = False
        self._changed = asyncio.Condition()

    async def came(self, num_frames: int) -> None:
        """Returns once so many have come, over all links."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.frames) >= num_frames)

    async def all_ended(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.ended == len(self.opened))

    async def carry(self, node_id: NodeId, address: str, token: str, chunks: AsyncIterator[bytes]) -> None:
        if self.is_away:
            raise PeerUnavailable(f"{node_id} cannot be reached")
        self.opened.append((node_id, address, token))
        reader = FrameReader()
        async for chunk in chunks:
            async with self._changed:
                self.frames += reader.feed(chunk)
                self._changed.notify_all()
        async with self._changed:
            self.ended += 1
            self._changed.notify_all()
