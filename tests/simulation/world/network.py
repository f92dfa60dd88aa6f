"""HTTP between the hosts of one process: requests and answers stream both ways, as over sockets, without any.

`httpx.ASGITransport` will not do: it reads a whole answer before it returns, and a link is a request without end.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote, urlencode

import httpx
from starlette.types import ASGIApp, Message, Scope

from shared.resilience.pool import Connect, Connections
from tests.simulation.world.front_desk import Desk

ANY_REQUEST = httpx.Request("GET", "http://world")
"""Answers of httpx name their request; nobody here asks for it."""

MAX_WAITING = 8
"""Chunks that wait at the receiver of a stream before its sender has to wait."""


@dataclass(frozen=True, slots=True)
class Host:
    """A process of the world."""

    name: str
    address: str
    """host:port"""
    context: contextvars.Context
    """In which everything of this host runs."""


class Fate(NamedTuple):
    """Of something that is sent."""

    after_s: float
    is_lost: bool
    """After that time it is known that it will not arrive."""


AT_ONCE = Fate(0.0, is_lost=False)


class Weather:
    """What becomes of what is sent. Fair: everything arrives, at once and in order."""

    def request(self, sender: str, receiver: str) -> Fate:
        """Of the head of a request to `receiver`."""
        return AT_ONCE

    def answer(self, sender: str, receiver: str) -> Fate:
        """Of what `sender` answers to `receiver`, who asked."""
        return AT_ONCE

    async def chunk(self, sender: str, receiver: str) -> None:
        """Returns when a piece of a stream has come to `receiver`, one after the other; raises a
        `httpx.TransportError` if it never will."""


FAIR = Weather()


class Network:
    def __init__(self, weather: Weather = FAIR) -> None:
        self._weather = weather
        self._listening: dict[str, tuple[Host, ASGIApp, Desk | None]] = {}
        self._open: dict[Exchange, None] = {}

    def listen(self, host: Host, app: ASGIApp, desk: Desk | None = None) -> None:
        """`desk`: a short way into the app."""
        self._listening[host.address] = (host, app, desk)

    def unlisten(self, host: Host) -> None:
        """Nobody is there any more: what is under way from or to it breaks."""
        self._listening.pop(host.address, None)
        for exchange in [each for each in self._open if host.name in (each.sender, each.receiver)]:
            exchange.break_off()

    def connect(self, sender: str) -> Connect:
        """How `sender` calls others."""
        return lambda base_url: MemoryConnections(self, sender, base_url.partition("://")[2])

    def exchange(self, sender: str, address: str, scope: Scope) -> "Exchange":
        """Raises `httpx.ConnectError` where nobody listens."""
        if address not in self._listening:
            raise httpx.ConnectError(f"nobody listens at {address}")
        host, app, desk = self._listening[address]
        exchange = Exchange(sender, host, app, desk, scope, self._weather, self._ended)
        self._open[exchange] = None
        return exchange

    def _ended(self, exchange: "Exchange") -> None:
        self._open.pop(exchange, None)


class MemoryConnections(Connections):
    """Calls the app at an address of the network in the name of `sender`."""

    def __init__(self, network: Network, sender: str, address: str) -> None:
        self._network = network
        self._sender = sender
        self._address = address
        self._open: dict[Exchange, None] = {}

    def stream(
        self,
        method: str,
        url: str,
        *,
        content: bytes | AsyncIterator[bytes] | None,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        timeout: httpx.Timeout,
    ) -> "_Asking":
        return _Asking(self, scope_of(method, url, params, headers), content, timeout)

    def begin(self, scope: Scope) -> "Exchange":
        exchange = self._network.exchange(self._sender, self._address, scope)
        self._open[exchange] = None
        return exchange

    def end(self, exchange: "Exchange") -> None:
        """Nobody reads its answer any more."""
        self._open.pop(exchange, None)
        if not exchange.is_over:
            exchange.break_off()

    async def aclose(self) -> None:
        for exchange in list(self._open):
            exchange.break_off()


class _Asking:
    """A request, until nobody reads its answer any more. (No generator: this is entered for every request.)"""

    def __init__(
        self,
        connections: MemoryConnections,
        scope: Scope,
        content: bytes | AsyncIterator[bytes] | None,
        limits: httpx.Timeout,
    ) -> None:
        self._connections, self._scope, self._content, self._limits = connections, scope, content, limits

    async def __aenter__(self) -> "_Answer":
        self._exchange = exchange = self._connections.begin(self._scope)
        content, limits = self._content, self._limits
        try:
            if content is None or isinstance(content, bytes):
                exchange.give(content or b"", is_last=True)
            else:
                await _upload(content, exchange, limits.write)
            return _Answer(await exchange.answered(limits.read), exchange, limits.read)
        except BaseException:
            self._connections.end(exchange)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._connections.end(self._exchange)


async def _upload(chunks: AsyncIterator[bytes], exchange: "Exchange", limit_s: float | None) -> None:
    """Until the receiver has heard enough: that is noticed at the next piece, as over a socket."""
    async for chunk in chunks:
        if exchange.is_over:
            return
        if chunk:
            await exchange.room(limit_s)
            exchange.give(chunk, is_last=False)
    exchange.give(b"", is_last=True)


class _Answer(httpx.Response):
    """httpx's own, without headers: nobody here sends any."""

    def __init__(self, status: int, exchange: "Exchange", limit_s: float | None) -> None:
        self.status_code, self._request = status, ANY_REQUEST
        self._exchange, self._limit_s = exchange, limit_s

    async def aiter_raw(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        while chunk := await self._exchange.next_chunk(self._limit_s):
            yield chunk


class Exchange:
    """One request and its answer.

    What the receiver does with it, and what is on the way to and from it, runs in the receiver's context: where that
    stands still, so does this.
    """

    def __init__(
        self,
        sender: str,
        host: Host,
        app: ASGIApp,
        desk: Desk | None,
        scope: Scope,
        weather: Weather,
        on_end: "Callable[[Exchange], None]",
    ) -> None:
        self.sender, self.receiver = sender, host.name
        self._serves, self._desk, self._scope, self._weather, self._on_end = app, desk, scope, weather, on_end
        self._asked: deque[bytes] = deque()
        self._is_asked = False
        """All of the request was given."""
        self._is_heard = False
        """And taken by the app."""
        self._status: int | None = None
        self._answered: deque[bytes] = deque()
        self._is_answered = False
        self._failure: httpx.TransportError | None = None
        self._app: asyncio.Future[None] | None = None
        """Wakes the app, which waits for more of the request, or for room."""
        self._caller: asyncio.Future[None] | None = None
        """Wakes who waits for the answer."""
        self._is_late = False
        self._serving: asyncio.Task[None] | None = None
        """Kept: the loop holds tasks weakly."""
        self._loop = asyncio.get_running_loop()
        self._context = host.context.copy()
        self._loop.call_soon(self._depart, context=self._context)

    # --- the caller's side

    @property
    def is_over(self) -> bool:
        return self._is_answered or self._failure is not None

    def give(self, chunk: bytes, *, is_last: bool) -> None:
        self._asked.append(chunk)
        self._is_asked = is_last
        _wake(self._app)

    async def room(self, limit_s: float | None) -> None:
        """Wait until the receiver has taken enough. Raises `httpx.WriteTimeout`."""
        await self._until(lambda: len(self._asked) < MAX_WAITING or self.is_over, limit_s, httpx.WriteTimeout)

    async def answered(self, limit_s: float | None) -> int:
        """The answer's status. Raises `httpx.TransportError`."""
        await self._until(lambda: self._status is not None or self._failure is not None, limit_s, httpx.ReadTimeout)
        if self._status is None:
            raise self._failure or httpx.ReadError("no answer")
        return self._status

    async def next_chunk(self, limit_s: float | None) -> bytes:
        """Of the answer; empty at its end. Raises `httpx.TransportError`."""
        if not self._answered and not self.is_over:
            await self._until(lambda: bool(self._answered) or self.is_over, limit_s, httpx.ReadTimeout)
        if self._answered:
            _wake(self._app)
            return self._answered.popleft()
        if not self._is_answered and self._failure is not None:
            raise self._failure
        return b""

    def break_off(self, failure: httpx.TransportError | None = None) -> None:
        """The connection is gone; what came before is there still. Idempotent."""
        if self._failure is None:
            self._failure = failure or httpx.ReadError("the connection broke")
            _wake(self._app)
            _wake(self._caller)

    async def _until(
        self, is_so: Callable[[], bool], limit_s: float | None, late: type[httpx.TimeoutException]
    ) -> None:
        if is_so():
            return
        self._is_late = False
        limit = None if limit_s is None else self._loop.call_later(limit_s, self._expire)
        try:
            while not is_so():
                if self._is_late:
                    self.break_off()
                    raise late(f"{self.receiver} was silent for {limit_s} s")
                self._caller = self._loop.create_future()
                await self._caller
        finally:
            if limit is not None:
                limit.cancel()

    def _expire(self) -> None:
        self._is_late = True
        _wake(self._caller)

    # --- on the way

    def _depart(self) -> None:
        if self._failure is None:
            after_s, is_lost = self._weather.request(self.sender, self.receiver)
            self._loop.call_later(after_s, self._arrive, is_lost, context=self._context)
        else:
            self._on_end(self)

    def _arrive(self, is_lost: bool) -> None:
        if is_lost:
            self.break_off()
        if self._failure is None:
            self._serving = self._loop.create_task(self._serve(), context=self._context)
        else:
            self._on_end(self)

    def _deliver(self, is_lost: bool, status: int, body: bytes) -> None:
        if is_lost:
            self.break_off()
        if self._failure is None:
            self._status, self._is_answered = status, True
            if body:
                self._answered.append(body)
            _wake(self._caller)
        self._on_end(self)

    # --- the app's side

    async def _serve(self) -> None:
        is_on_its_way = False
        try:
            answer = (
                await self._desk(self._scope, self._asked[0]) if self._desk is not None and self._is_whole else None
            )
            if answer is None:
                await self._serves(self._scope, self._receive, self._send)
            elif self._failure is None:
                after_s, is_lost = self._weather.answer(self.receiver, self.sender)
                self._loop.call_later(after_s, self._deliver, is_lost, *answer, context=self._context)
                is_on_its_way = True
        except httpx.TransportError as error:
            self.break_off(error)
        except Exception:  # noqa: BLE001  a server closes the connection; the app has logged what it was
            self.break_off()
        finally:
            if not is_on_its_way:
                if not self._is_answered:
                    self.break_off()
                self._on_end(self)

    @property
    def _is_whole(self) -> bool:
        """All of the request is here, in one piece."""
        return self._is_asked and len(self._asked) == 1

    async def _receive(self) -> Message:
        while not (self._asked and not self._is_heard):
            if self._failure is not None or (self._is_heard and self._is_answered):
                return {"type": "http.disconnect"}
            self._app = self._loop.create_future()
            await self._app
        chunk = self._asked.popleft()
        _wake(self._caller)
        if not self._is_asked:
            await self._weather.chunk(self.sender, self.receiver)
        self._is_heard = self._is_asked and not self._asked
        return {"type": "http.request", "body": chunk, "more_body": not self._is_heard}

    async def _send(self, message: Message) -> None:
        if self._failure is not None:
            return
        if message["type"] == "http.response.start":
            after_s, is_lost = self._weather.answer(self.receiver, self.sender)
            await asyncio.sleep(after_s)
            if is_lost:
                raise httpx.ReadError("the connection broke")
            self._status = message["status"]
            return  # told with the first piece of the body
        while len(self._answered) >= MAX_WAITING and self._failure is None:
            self._app = self._loop.create_future()
            await self._app
        if message.get("body"):
            self._answered.append(message["body"])
        self._is_answered = not message.get("more_body", False)
        _wake(self._caller)


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def scope_of(method: str, path: str, params: Mapping[str, str] | None, headers: Mapping[str, str]) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "scheme": "http",
        "path": unquote(path) if "%" in path else path,
        "raw_path": path.encode(),
        "query_string": urlencode(params).encode() if params else b"",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
        "state": {},
    }
