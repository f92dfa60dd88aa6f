"""Time, taken by constructor so that tests can move it."""

import asyncio
import time
from abc import ABC, abstractmethod


class Clock(ABC):
    @abstractmethod
    def now_s(self) -> float:
        """Monotonic seconds; only differences mean anything. For durations and deadlines."""

    @abstractmethod
    def wall_s(self) -> float:
        """Seconds since the Unix epoch. For logs and receipts only."""

    def thread_s(self) -> float:
        """Seconds that the calling thread has computed; only differences mean anything. Of a clock that does not follow
        real time: all of its time."""
        return self.now_s()

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`; 0 or less lets other tasks run once."""


class SystemClock(Clock):
    def now_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()

    def thread_s(self) -> float:
        return time.thread_time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
