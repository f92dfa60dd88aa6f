"""The one thread on which this worker's engines run."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from services.worker.service.thread_team import ThreadTeam

SHORT_CALL_S = 0.006  # the event loop may stand still for so long: a tenth of what anybody waiting would notice
LONG_CALL_S = 0.05  # many turns of the kernel's scheduler

T = TypeVar("T")


class EngineThread:
    """Runs calls one after the other in the order given, whatever stage they are for.

    More threads would not make more of the machine: one call already uses the cores it is allowed. The event loop
    stays free, since the library releases the interpreter while it computes.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        """`executor`: of one thread, or that of the caller; None: a thread of its own."""
        self._executor = executor or ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._team = ThreadTeam("engine")
        self._unfinished = 0
        self.num_given = 0
        """Calls so far."""
        self._beside = 0
        self.num_beside = 0
        """Pieces of work beside the calls so far."""

    @property
    def is_idle(self) -> bool:
        return self._unfinished == 0

    @property
    def is_undisturbed(self) -> bool:
        return self._beside == 0

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Around work on other threads that takes cores from the calls for a while, such as loading a stage."""
        self._beside += 1
        self.num_beside += 1
        try:
            yield
        finally:
            self._beside -= 1

    def submit(
        self,
        call: Callable[[], T],
        done: Callable[["Future[T]"], None],
        *,
        n_threads: int = 1,
        expected_s: float | None = None,
    ) -> None:
        """Run `call`; then run `done` with its finished future on the event loop, from which this is called.

        A callback, not a coroutine: to resume one costs two turns of the loop at every step of the ring. A short
        call of one thread runs here and now if nothing else is under way: to wake the engine's thread, and to be woken
        by it, would cost a good part of the call itself, and the event loop waits for it in any case.
        """
        loop = asyncio.get_running_loop()
        self.num_given += 1
        is_short = n_threads == 1 and expected_s is not None and expected_s < SHORT_CALL_S
        if is_short and self.is_idle:
            loop.call_soon(done, _run(call))
            return
        self._unfinished += 1

        def finished(future: "Future[T]") -> None:
            self._unfinished -= 1
            done(future)

        future = self._executor.submit(self._run_spread, call, n_threads, expected_s)
        future.add_done_callback(lambda future: loop.call_soon_threadsafe(finished, future))

    async def run(self, call: Callable[[], T], *, n_threads: int = 1) -> T:
        """The result of `call`, for those who have the time to wait for it."""
        given: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def hand_over(done: "Future[T]") -> None:
            if given.done():  # nobody waits any more
                return
            if error := done.exception():
                given.set_exception(error)
            else:
                given.set_result(done.result())

        self.submit(call, hand_over, n_threads=n_threads)
        return await given

    def _run_spread(self, call: Callable[[], T], n_threads: int, expected_s: float | None) -> T:
        self._team.before_call(n_threads, is_long=expected_s is None or expected_s > LONG_CALL_S)
        try:
            return call()
        finally:
            self._team.after_call(n_threads)

    def close(self) -> None:
        """Wait for the calls given so far: at most one of each stage computes, the others only free memory."""
        self._executor.shutdown(wait=True)


def _run(call: Callable[[], T]) -> "Future[T]":
    future: Future[T] = Future()
    try:
        future.set_result(call())
    except Exception as error:  # noqa: BLE001  handed to `done`, as the executor does
        future.set_exception(error)
    return future
