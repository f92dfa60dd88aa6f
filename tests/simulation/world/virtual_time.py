"""An event loop without a clock, sockets or threads: when nothing is ready, time jumps to the next timer.

What runs on it belongs to hosts, by a variable of its context: so a host can be made to stand still, or to die.
"""

import asyncio
import heapq
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from typing import Any, ParamSpec, TypeVar, TypeVarTuple

from shared.runtime.clock import Clock

EPOCH_S = 1_700_000_000.0
"""Unix seconds when a loop begins: as good as any other, and always the same."""

MANY_TASKS = 256
RESOLUTION_S = 1e-9

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


class Due(asyncio.TimerHandle):
    """What is to be called, now or at a time: asyncio's own, without its ways of debugging."""

    __slots__ = ()
    # Of asyncio's own.
    _when: float
    _cancelled: bool
    _callback: Callable[..., object]
    _args: tuple[Any, ...]
    _context: Context

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None
    ) -> None:
        self._when, self._callback, self._args, self._cancelled = when, callback, args, False
        self._context = copy_context() if context is None else context

    def cancel(self) -> None:
        self._cancelled = True
        self._callback, self._args = _nothing, ()  # what they hold may go


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def _nothing() -> None:
    """What a cancelled callback does."""


class VirtualLoop(asyncio.SelectorEventLoop):
    # Of asyncio's own: what is to run now, and whether `stop` was called.
    _ready: deque[Due]
    _stopping: bool

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self._now_s = 0.0
        self._num_timers = 0
        self._timers: list[tuple[float, int, Due]] = []
        """A heap. Of those for one instant, the one that was set first comes first."""
        self._held: dict[str, list[Due]] = {}
        self._tasks_of: dict[str, list[asyncio.Task[Any]]] = {}
        self.executor: Executor = InlineExecutor(max_workers=1)
        self.set_default_executor(self.executor)

    def time(self) -> float:
        return self._now_s

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        due = Due(self._now_s, callback, args, context)
        self._ready.append(due)
        return due

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self._num_timers += 1
        due = Due(when, callback, args, context)
        heapq.heappush(self._timers, (when, self._num_timers, due))
        return due

    def pause(self, seconds: float) -> "asyncio.Future[None]":
        """To be awaited: what `asyncio.sleep` does."""
        waiter: asyncio.Future[None] = self.create_future()
        self.call_at(self._now_s + seconds, _wake, waiter)
        return waiter

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> "asyncio.Future[T]":
        """At once, whichever executor: there is one thread."""
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  handed on, as every executor does
            done.set_exception(error)
        return done

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

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> "asyncio.Task[T]":
        task = asyncio.Task(coro, loop=self, name=name, context=context)  # type: ignore[arg-type]  # as asyncio takes it
        host = RUNS_ON.get() if context is None else context.get(RUNS_ON, "")
        if host:
            tasks = self._tasks_of.setdefault(host, [])
            tasks.append(task)
            if len(tasks) >= MANY_TASKS:
                tasks[:] = [each for each in tasks if not each.done()]
        return task

    def _run_once(self) -> None:
        """One turn, in place of asyncio's: no selector is asked, and time passes when nothing else can be done."""
        timers, ready = self._timers, self._ready
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not ready and not self._stopping:
            if not timers:
                raise NothingHappens
            self._now_s = max(self._now_s, timers[0][0])
        until_s = self._now_s + RESOLUTION_S
        while timers and timers[0][0] < until_s:
            ready.append(heapq.heappop(timers)[2])
        for _ in range(len(ready)):
            due = ready.popleft()
            if self._held:
                waiting = self._held.get(due._context.get(RUNS_ON, ""))
                if waiting is not None:
                    waiting.append(due)
                    continue
            if not due._cancelled:
                self._call(due)

    def _call(self, due: Due) -> None:
        try:
            due._context.run(due._callback, *due._args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  told, as every loop does
            self.call_exception_handler({"message": f"Exception in {due._callback}", "exception": error})

    def _write_to_self(self) -> None:
        """There is no other thread that would have to wake this one."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  asyncio's name
        """It has no threads to wait for."""


class VirtualClock(Clock):
    def __init__(self, loop: VirtualLoop, *, skew_s: float = 0.0) -> None:
        """`skew_s`: how wrong its wall time is."""
        self._loop = loop
        self._skew_s = skew_s

    def now_s(self) -> float:
        return self._loop._now_s

    def wall_s(self) -> float:
        return EPOCH_S + self._skew_s + self._loop._now_s

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            await self._loop.pause(seconds)
        else:
            await asyncio.sleep(0)


def run(main: Coroutine[Any, Any, T]) -> T:
    """The result of `main`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
