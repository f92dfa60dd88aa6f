"""An event loop without a clock, sockets or threads: when nothing is ready, time jumps to the next timer.

What runs on it belongs to hosts, by a variable of its context: so a host can be made to stand still, or to die.
"""

import asyncio
import heapq
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import Context, ContextVar
from typing import Any, ParamSpec, TypeVar, TypeVarTuple

from shared.runtime.clock import Clock

EPOCH_S = 1_700_000_000.0
"""Unix seconds when a loop begins: as good as any other, and always the same."""

MANY_TASKS = 256

RUNS_ON: ContextVar[str] = ContextVar("runs_on", default="")
"""Which run of which host a callback or a task belongs to."""

T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


class NothingHappens(Exception):
    """Everybody waits for somebody, and no timer will wake anybody."""


class InlineExecutor(ThreadPoolExecutor):
    """Runs each call at once, where it was given: one thread, one order."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  handed on, as every executor does
            future.set_exception(error)
        return future


class Timer(asyncio.TimerHandle):
    """Of those for one instant, the one that was set first comes first: a heap alone does not see to that."""

    __slots__ = ("_order",)
    # Of asyncio's own: when it is due, and whether it waits.
    _when: float
    _scheduled: bool

    def __init__(
        self,
        when: float,
        order: int,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self._order = order

    def __lt__(self, other: asyncio.TimerHandle) -> bool:
        assert isinstance(other, Timer), "every timer of a virtual loop is set by its `call_at`"
        return (self._when, self._order) < (other._when, other._order)


class VirtualLoop(asyncio.SelectorEventLoop):
    # Of asyncio's own: timers by time, what is to run now, and whether `stop` was called.
    _scheduled: list[asyncio.TimerHandle]
    _ready: deque[asyncio.Handle]
    _stopping: bool
    _timer_cancelled_count: int

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self._now_s = 0.0
        self._num_timers = 0
        self._clock_resolution = 1e-9
        self._held: dict[str, list[asyncio.Handle]] = {}
        self._tasks_of: dict[str, list[asyncio.Task[Any]]] = {}
        self.executor: Executor = InlineExecutor(max_workers=1)
        self.set_default_executor(self.executor)
        self.set_task_factory(self._new_task)  # type: ignore[arg-type]  # versions of Python differ in what they give

    def time(self) -> float:
        return self._now_s

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self._num_timers += 1
        timer = Timer(when, self._num_timers, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def spend(self, seconds: float) -> None:
        """Let time pass within what runs now, as a computation does."""
        self._now_s += seconds

    def hold(self, host: str) -> None:
        """Nothing of this host runs any more, as after SIGSTOP; its timers go by."""
        self._held.setdefault(host, [])

    def let_go(self, host: str) -> None:
        """It goes on where it stood."""
        self._ready.extend(self._held.pop(host, ()))

    def kill(self, host: str) -> None:
        """Cancel all that runs of this host. Whoever calls has cut it off from all others: no last words."""
        self.let_go(host)
        for task in self._tasks_of.pop(host, []):
            task.cancel()

    def _new_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, T],
        *,
        context: Context | None = None,
        **options: Any,  # such as asyncio knows
    ) -> "asyncio.Task[T]":
        task = asyncio.Task(coro, loop=self, context=context, **options)
        host = RUNS_ON.get() if context is None else context.get(RUNS_ON, "")
        if host:
            tasks = self._tasks_of.setdefault(host, [])
            tasks.append(task)
            if len(tasks) >= MANY_TASKS:
                tasks[:] = [each for each in tasks if not each.done()]
        return task

    def _run_once(self) -> None:
        """One turn, in place of asyncio's: no selector is asked, and time passes when nothing else can be done."""
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0].cancelled():
            self._forget(heapq.heappop(scheduled))
            self._timer_cancelled_count -= 1
        if not ready and not self._stopping:
            if not scheduled:
                raise NothingHappens
            self._now_s = max(self._now_s, scheduled[0].when())
        until_s = self._now_s + self._clock_resolution
        while scheduled and scheduled[0].when() < until_s:
            ready.append(self._forget(heapq.heappop(scheduled)))
        for _ in range(len(ready)):
            handle = ready.popleft()
            if self._held:
                waiting = self._held.get(handle._context.get(RUNS_ON, ""))  # type: ignore[attr-defined]
                if waiting is not None:
                    waiting.append(handle)
                    continue
            if not handle.cancelled():
                handle._run()

    @staticmethod
    def _forget(timer: asyncio.TimerHandle) -> asyncio.TimerHandle:
        """So that cancelling it later is not counted among the timers that wait."""
        timer._scheduled = False  # type: ignore[attr-defined]
        return timer

    def _write_to_self(self) -> None:
        """There is no other thread that would have to wake this one."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  asyncio's name
        """It has no threads to wait for."""


class VirtualClock(Clock):
    def __init__(self, loop: asyncio.AbstractEventLoop, *, skew_s: float = 0.0) -> None:
        """`skew_s`: how wrong its wall time is."""
        self._loop = loop
        self._skew_s = skew_s

    def now_s(self) -> float:
        return self._loop.time()

    def wall_s(self) -> float:
        return EPOCH_S + self._skew_s + self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


def run(main: Coroutine[Any, Any, T]) -> T:
    """The result of `main`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
