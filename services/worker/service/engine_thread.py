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

    def submit(self, call: Callable[[], T], done: Callable[["Future[T]"], None]) -> None:
        """Run `call`; then run `done` with its finished future on the event loop, from which this is called.

        A callback, not a coroutine: to resume one costs two turns of the loop at every step of the ring.
        """
        loop = asyncio.get_running_loop()
        future = self._executor.submit(call)
        future.add_done_callback(lambda finished: loop.call_soon_threadsafe(done, finished))

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` in its turn and return what it returns."""
        return await asyncio.wrap_future(self._executor.submit(call))

    def close(self) -> None:
        """Wait for the calls given so far: at most one of each stage computes, the others only free memory."""
        self._executor.shutdown(wait=True)
