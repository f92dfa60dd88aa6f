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

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`; 0 or less lets other tasks run once."""


class SystemClock(Clock):
    def now_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
