"""The one thread on which this worker's engines run."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class EngineThread:
    """Runs calls one after the other in the order given, whatever stage they are for.

    More threads would not make more of the machine: one call already uses the cores it is allowed. The event loop
    stays free, since the library releases the interpreter while it computes.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._unfinished = 0

    def submit(self, call: Callable[[], T], done: Callable[["Future[T]"], None], *, is_short: bool = False) -> None:
        """Run `call`; then run `done` with its finished future on the event loop, from which this is called.

        A callback, not a coroutine: to resume one costs two turns of the loop at every step of the ring. A call that
        `is_short` runs here and now if nothing else is under way: to wake the thread, and to be woken by it, would
        cost a good part of the call itself, and the event loop waits for it in any case.
        """
        loop = asyncio.get_running_loop()
        if is_short and self._unfinished == 0:
            loop.call_soon(done, _run(call))
            return
        self._unfinished += 1

        def finished(future: "Future[T]") -> None:
            self._unfinished -= 1
            done(future)

        future = self._executor.submit(call)
        future.add_done_callback(lambda future: loop.call_soon_threadsafe(finished, future))

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
