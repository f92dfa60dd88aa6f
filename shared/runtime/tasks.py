"""Background work of a service: owned, named, logged when it fails, ended with the service."""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from shared.domain.errors import Unavailable
from shared.resilience.context import current_deadline
from shared.runtime.clock import Clock, SystemClock

log = logging.getLogger(__name__)

T = TypeVar("T")


class BackgroundTasks:
    """Keeps every task it starts until it ends, so that none is lost and none outlives its service."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._tasks: set[asyncio.Task[object]] = set()

    def start(self, coro: Coroutine[object, object, T], *, name: str) -> "asyncio.Task[T]":
        """Run `coro` beside the caller. A failure is logged; whoever awaits the task gets it as well.

        It is not bound by the deadline of the request that started it: it may outlive its answer.
        """
        context = contextvars.copy_context()
        context.run(current_deadline.set, None)
        task = asyncio.create_task(coro, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def loop(self, name: str, body: Callable[[], Awaitable[None]], *, restart_delay_s: float = 0.5) -> None:
        """Call `body` again and again until `stop`; `body` waits for its own work (an event, a timer).

        A body that raises is logged and called again after `restart_delay_s`. What is expected to pass by itself
        (`Unavailable`) is one warning until a call succeeds again, anything else a traceback each time.
        """
        _ = self.start(self._forever(name, body, restart_delay_s), name=name)

    async def stop(self, grace_s: float) -> None:
        """Cancel everything and wait at most `grace_s` seconds for it to end; says which tasks did not."""
        running = list(self._tasks)
        for task in running:
            task.cancel()
        if not running:
            return
        _, stuck = await asyncio.wait(running, timeout=grace_s)
        for task in stuck:
            log.warning("background_task_stuck", extra={"task": task.get_name(), "grace_s": grace_s})

    async def _forever(self, name: str, body: Callable[[], Awaitable[None]], restart_delay_s: float) -> None:
        is_hindered = False
        while True:
            pause_s = 0.0  # lets others run even when the body never waits
            try:
                await body()
                is_hindered = False
            except Unavailable as error:
                if not is_hindered:
                    log.warning(
                        "background_loop_hindered", extra={"loop": name, "code": error.code, "reason": str(error)}
                    )
                is_hindered = True
                pause_s = restart_delay_s
            except Exception:
                log.exception("background_loop_failed", extra={"loop": name, "restart_delay_s": restart_delay_s})
                pause_s = restart_delay_s
            await self._clock.sleep(pause_s)

    def _ended(self, task: "asyncio.Task[object]") -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("background_task_failed", extra={"task": task.get_name()}, exc_info=error)
