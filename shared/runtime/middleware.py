"""What surrounds every request, as pure ASGI: id, last resort for errors, last answers, deadline, service token, body
limit."""

import asyncio
import hmac
import logging
import re
from collections.abc import Callable, Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.domain.deadline import Deadline
from shared.domain.errors import (
    BodyTooLarge,
    ButterflyError,
    DeadlineExceeded,
    InvalidInput,
    WrongServiceToken,
)
from shared.resilience.context import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    SERVICE_TOKEN_HEADER,
    current_deadline,
    current_request_id,
)
from shared.runtime.problems import RenderError

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
MAX_DEADLINE_MS = 10 * 86_400_000
PROBE_PATHS = ("/livez", "/healthz", "/readyz", "/health", "/startupz", "/metrics")


def is_below(path: str, prefixes: Sequence[str]) -> bool:
    """Whether `path` is one of `prefixes` or below one; the prefix `/` holds everything."""
    return any(path == prefix or path.startswith(prefix.rstrip("/") + "/") for prefix in prefixes)


class RequestContext:
    """Gives the request its id and answers whatever error comes out of the rest."""

    def __init__(self, app: ASGIApp, *, render: RenderError, new_id: Callable[[], str]) -> None:
        self._app = app
        self._render = render
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if REQUEST_ID.fullmatch(given) else self._new_id()
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        token = current_request_id.set(request_id)
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            log.info("client_disconnected", extra={"path": scope["path"]})
        except Exception as error:
            if started:
                raise
            answer = self._answer(error, scope)
            await answer(scope, receive, send_with_id)
        finally:
            current_request_id.reset(token)

    def _answer(self, error: Exception, scope: Scope) -> ASGIApp:
        if not isinstance(error, ButterflyError):
            log.error("request_failed", extra={"path": scope["path"]}, exc_info=error)
            error = ButterflyError("internal error")
        return self._render(error, Request(scope))


class LastAnswers:
    """Tells clients of a process that stops to take another connection next time: theirs closes after the answer.

    Outermost of ours, so that answers to errors say so too.
    """

    def __init__(self, app: ASGIApp, *, draining: asyncio.Event) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and self._draining.is_set():
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_last if scope["type"] == "http" else send)


class DeadlineHeader:
    """Reads how much time the caller has left: as `current_deadline` and as `request.state.deadline`."""

    def __init__(self, app: ASGIApp, *, now: Callable[[], float]) -> None:
        self._app = app
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        deadline = self._deadline(Headers(scope=scope).get(DEADLINE_HEADER))
        scope.setdefault("state", {})["deadline"] = deadline
        token = current_deadline.set(deadline)
        try:
            await self._app(scope, receive, send)
        finally:
            current_deadline.reset(token)

    def _deadline(self, left_ms: str | None) -> Deadline | None:
        if left_ms is None:
            return None
        digits = left_ms.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 12:
            raise InvalidInput(f"{DEADLINE_HEADER} should be the time left in whole milliseconds")
        if int(left_ms) <= 0:
            raise DeadlineExceeded("the deadline had passed when the request came in")
        return Deadline.after(min(int(left_ms), MAX_DEADLINE_MS) / 1000, now_s=self._now())


class ServiceToken:
    """Lets only holders of the service token in, except to public paths.

    `request.state.is_trusted` tells a public route whether the caller showed the token all the same.
    """

    def __init__(self, app: ASGIApp, *, token: str, public_paths: Sequence[str]) -> None:
        self._app = app
        self._token = token.encode()
        self._public = (*PROBE_PATHS, *public_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = Headers(scope=scope).get(SERVICE_TOKEN_HEADER, "").encode()
            is_trusted = not self._token or hmac.compare_digest(given, self._token)
            if not is_trusted and not is_below(scope["path"], self._public):
                raise WrongServiceToken(f"this path needs the header {SERVICE_TOKEN_HEADER}")
            scope.setdefault("state", {})["is_trusted"] = is_trusted
        await self._app(scope, receive, send)


class _TooLarge(HTTPException):
    """Passes FastAPI's own reading of bodies unharmed, as only its exceptions do."""

    def __init__(self) -> None:
        super().__init__(413)


class _TooSlow(HTTPException):
    """As `_TooLarge`."""

    def __init__(self) -> None:
        super().__init__(408)


class BodyLimit:
    """Bounds the size of request bodies and the time they take, while they are read, with or without Content-Length.

    FastAPI's `max_body_size` is not used: with a Content-Length it answers in plain text, whatever the dialect.
    """

    def __init__(
        self, app: ASGIApp, *, max_bytes: int, by_path: Mapping[str, int | None], arrival_limit_s: float
    ) -> None:
        """`by_path`: other limits below a prefix, the longest prefix wins; None: a stream without end."""
        self._app = app
        self._max_bytes = max_bytes
        self._arrival_limit_s = arrival_limit_s
        self._by_path = sorted(by_path.items(), key=lambda item: -len(item[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._limit(scope["path"]) if scope["type"] == "http" else None
        if limit is None:
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise BodyTooLarge(f"the body may have at most {limit} bytes")
        left = limit
        until_s: float | None = asyncio.get_running_loop().time() + self._arrival_limit_s

        async def bounded_receive() -> Message:
            nonlocal left, until_s
            try:
                async with asyncio.timeout_at(until_s):
                    message = await receive()
            except TimeoutError:
                raise _TooSlow from None
            if not message.get("more_body", False):
                until_s = None  # what comes now is the client's leaving
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLarge
            return message

        await self._app(scope, bounded_receive, send)

    def _limit(self, path: str) -> int | None:
        for prefix, limit in self._by_path:
            if is_below(path, (prefix,)):
                return limit
        return self._max_bytes
