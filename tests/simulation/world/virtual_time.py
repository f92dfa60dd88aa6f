"""An event loop without a clock, sockets or threads: when nothing is ready, time jumps to the next timer."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from shared.runtime.clock import Clock

EPOCH_S = 1_700_000_000.0
"""Unix seconds when a loop begins: as good as any other, and always the same."""

T = TypeVar("T")
P = ParamSpec("P")


class NothingHappens(Exception):
    """Everybody waits for somebody, and no timer will wake anybody."""


class _Silence(selectors.SelectSelector):
    """Nothing ever comes from outside; to wait is to let time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingHappens
        self.now_s += max(0.0, timeout)
        return []


class InlineExecutor(ThreadPoolExecutor):
    """Runs each call at once, where it was given: one thread, one order."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  handed on, as every executor does
            future.set_exception(error)
        return future


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._silence = _Silence()
        super().__init__(self._silence)
        self._clock_resolution = 1e-9
        self.executor: Executor = InlineExecutor(max_workers=1)
        self.set_default_executor(self.executor)

    def time(self) -> float:
        return self._silence.now_s

    def _write_to_self(self) -> None:
        """There is no other thread that would have to wake this one."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  asyncio's name
        """It has no threads to wait for."""

    def spend(self, seconds: float) -> None:
        """Let time pass within what runs now, as a computation does."""
        self._silence.now_s += seconds


class VirtualClock(Clock):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        return self._loop.time()

    def wall_s(self) -> float:
        return EPOCH_S + self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


def run(main: Coroutine[Any, Any, T]) -> T:
    """The result of `main`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
