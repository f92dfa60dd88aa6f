"""Server-sent events: one write per event, a comment now and then, an end when the client leaves."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from shared.domain.errors import ButterflyError
from shared.runtime.clock import Clock

T = TypeVar("T")

KEEP_ALIVE_S: Final = 10.0
DONE: Final = b"data: [DONE]\n\n"
_KEEP_ALIVE: Final = b": keep-alive\n\n"
_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


def data_event(body: object, *, name: str | None = None, event_id: str | None = None) -> bytes:
    """One event. `body` becomes one line of JSON."""
    lines = [f"event: {name}\n"] if name is not None else []
    if event_id is not None:
        lines.append(f"id: {event_id}\n")
    lines.append(f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n")
    return "".join(lines).encode()


def retry_line(milliseconds: int) -> bytes:
    """How long a browser shall wait before it comes back."""
    return f"retry: {milliseconds}\n\n".encode()


class EventStream(Response):
    """Sends events until they end or the client leaves; then, whatever happened, calls `on_close`."""

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        clock: Clock,
        on_close: Callable[[], None] = lambda: None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(headers=_HEADERS | dict(headers or {}))
        del self.headers["content-length"]
        self._events = events
        self._clock = clock
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._write(send))
                beside = [group.create_task(self._keep_alive(send)), group.create_task(_leave(receive, writing))]
                await asyncio.wait({writing})
                for task in beside:
                    task.cancel()
        finally:
            self._on_close()

    async def _write(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await self._clock.sleep(KEEP_ALIVE_S)
            await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})


async def while_connected(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """The result of `work`; if the client leaves first, `work` is cancelled and `ClientDisconnect` raised."""
    async with asyncio.TaskGroup() as group:
        working = group.create_task(_caught(work))
        leaving = group.create_task(_leave(receive, working))
        await asyncio.wait({working})
        leaving.cancel()
    if working.cancelled():
        raise ClientDisconnect
    found = working.result()
    if isinstance(found, ButterflyError):
        raise found
    return found


async def _caught(work: Coroutine[object, object, T]) -> T | ButterflyError:
    """A task group would wrap what `work` raises into a group."""
    try:
        return await work
    except ButterflyError as error:
        return error


async def _leave(receive: Receive, work: "asyncio.Task[T]") -> None:
    """Cancel `work` when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    work.cancel()
