"""A clock that stands still until a test moves it."""

import asyncio
import heapq
import itertools

from shared.runtime.clock import Clock


class FakeClock(Clock):
    def __init__(self, *, start_s: float = 1_000.0, wall_start_s: float = 1_700_000_000.0) -> None:
        self._now_s = start_s
        self._wall_offset_s = wall_start_s - start_s
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return self._now_s + self._wall_offset_s

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + seconds, next(self._order), woken))
        await woken

    @property
    def num_sleepers(self) -> int:
        """Tasks that now wait for the clock."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Move time, waking sleepers in order, each at its own moment, and let everybody run."""
        await self.settle()
        end_s = self._now_s + seconds
        while self._sleepers and self._sleepers[0][0] <= end_s:
            at_s, _, woken = heapq.heappop(self._sleepers)
            self._now_s = max(self._now_s, at_s)
            if not woken.done():
                woken.set_result(None)
                await self.settle()
        self._now_s = end_s
        await self.settle()

    async def settle(self) -> None:
        """Let every task that can run do so (not those that wait for a socket)."""
        for _ in range(20):
            await asyncio.sleep(0)
