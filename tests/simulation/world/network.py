"""HTTP between the hosts of one process: requests and answers stream both ways, as over sockets, without any.

`httpx.ASGITransport` will not do: it reads a whole answer before it returns, and a link is a request without end.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urlencode

import httpx
from starlette.types import ASGIApp, Message, Scope

from shared.resilience.pool import Connect, Connections
from tests.simulation.world.front_desk import PATH, Desk

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


class Weather:
    """What becomes of what is sent. Fair: everything arrives, at once and in order.

    Each method returns when the thing has arrived, and raises a `httpx.TransportError` if it never will.
    """

    async def request(self, sender: str, receiver: str) -> None:
        """The head of a request comes to `receiver`."""

    async def answer(self, sender: str, receiver: str) -> None:
        """What `sender` answers comes to `receiver`, who asked."""

    async def chunk(self, sender: str, receiver: str) -> None:
        """So does a piece of a stream; pieces of one stream come one after the other."""


class Network:
    def __init__(self, weather: Weather | None = None) -> None:
        self._weather = weather
        self._listening: dict[str, tuple[Host, ASGIApp, Desk | None]] = {}
        self._open: dict[Exchange, None] = {}

    def listen(self, host: Host, app: ASGIApp, desk: Desk | None = None) -> None:
        """`desk`: takes messages in place of the app."""
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
        exchange = Exchange(sender, host.name, self._weather)
        self._open[exchange] = None
        serving = asyncio.get_running_loop().create_task(exchange.serve(app, desk, scope), context=host.context.copy())
        exchange.serving = serving
        serving.add_done_callback(lambda _: self._open.pop(exchange, None))
        return exchange


class MemoryConnections(Connections):
    """Calls the app at an address of the network in the name of `sender`."""

    def __init__(self, network: Network, sender: str, address: str) -> None:
        self._network = network
        self._sender = sender
        self._address = address
        self._open: dict[Exchange, None] = {}

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        content: bytes | AsyncIterator[bytes] | None,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        timeout: httpx.Timeout,  # noqa: ASYNC109  httpx's own limits
    ) -> AsyncIterator[httpx.Response]:
        exchange = self._network.exchange(self._sender, self._address, scope_of(method, url, params, headers))
        self._open[exchange] = None
        try:
            if content is None or isinstance(content, bytes):
                exchange.give(content or b"", is_last=True)
            else:
                await _upload(content, exchange, timeout.write)
            status = await exchange.answered(timeout.read)
            yield httpx.Response(status, stream=_Answer(exchange, timeout.read), request=ANY_REQUEST)
        finally:
            del self._open[exchange]
            exchange.break_off()

    async def aclose(self) -> None:
        for exchange in list(self._open):
            exchange.break_off()


async def _upload(chunks: AsyncIterator[bytes], exchange: "Exchange", limit_s: float | None) -> None:
    """Until the receiver has heard enough: that is noticed at the next piece, as over a socket."""
    async for chunk in chunks:
        if exchange.is_over:
            return
        if chunk:
            await exchange.room(limit_s)
            exchange.give(chunk, is_last=False)
    exchange.give(b"", is_last=True)


class _Answer(httpx.AsyncByteStream):
    def __init__(self, exchange: "Exchange", limit_s: float | None) -> None:
        self._exchange, self._limit_s = exchange, limit_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._exchange.next_chunk(self._limit_s):
            yield chunk


class Exchange:
    """One request and its answer. The app's side is `serve`, all else is the caller's."""

    def __init__(self, sender: str, receiver: str, weather: Weather | None) -> None:
        self.sender = sender
        self.receiver = receiver
        self.serving: asyncio.Task[None] | None = None
        """Kept: the loop holds tasks weakly."""
        self._weather = weather
        self._asked: deque[bytes] = deque()
        self._is_asked = False
        """All of the request was given."""
        self._is_heard = False
        """And taken by the app."""
        self._status: int | None = None
        self._answered: deque[bytes] = deque()
        self._is_answered = False
        self._failure: httpx.TransportError | None = None
        self._app_turn = asyncio.Event()
        self._caller_turn = asyncio.Event()

    @property
    def is_over(self) -> bool:
        return self._is_answered or self._failure is not None

    def give(self, chunk: bytes, *, is_last: bool) -> None:
        self._asked.append(chunk)
        self._is_asked = is_last
        self._app_turn.set()

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
        await self._until(lambda: bool(self._answered) or self.is_over, limit_s, httpx.ReadTimeout)
        if self._answered:
            self._app_turn.set()
            return self._answered.popleft()
        if not self._is_answered and self._failure is not None:
            raise self._failure
        return b""

    def break_off(self, failure: httpx.TransportError | None = None) -> None:
        """The connection is gone; what came before is there still. Idempotent."""
        if self._failure is None:
            self._failure = failure or httpx.ReadError("the connection broke")
            self._app_turn.set()
            self._caller_turn.set()

    async def serve(self, app: ASGIApp, desk: Desk | None, scope: Scope) -> None:
        try:
            if self._weather is not None:
                await self._weather.request(self.sender, self.receiver)
            if desk is None or scope["path"] != PATH or not await self._served_at(desk, scope):
                await app(scope, self._receive, self._send)
        except httpx.TransportError as error:
            self.break_off(error)
        except Exception:  # noqa: BLE001  a server closes the connection; the app has logged what it was
            self.break_off()
        finally:
            if not self._is_answered:
                self.break_off()

    async def _served_at(self, desk: Desk, scope: Scope) -> bool:
        answer = await desk(scope, self._asked[0])
        if answer is None:
            return False
        status, body = answer
        await self._send({"type": "http.response.start", "status": status})
        await self._send({"type": "http.response.body", "body": body})
        return True

    async def _receive(self) -> Message:
        while not (self._asked and not self._is_heard):
            if self._failure is not None or (self._is_heard and self._is_answered):
                return {"type": "http.disconnect"}
            self._app_turn.clear()
            await self._app_turn.wait()
        chunk = self._asked.popleft()
        self._caller_turn.set()
        if self._weather is not None and not self._is_asked:
            await self._weather.chunk(self.sender, self.receiver)
        self._is_heard = self._is_asked and not self._asked
        return {"type": "http.request", "body": chunk, "more_body": not self._is_heard}

    async def _send(self, message: Message) -> None:
        if self._failure is not None:
            return
        if message["type"] == "http.response.start":
            if self._weather is not None:
                await self._weather.answer(self.receiver, self.sender)
            self._status = message["status"]
            return  # told with the first piece of the body
        while len(self._answered) >= MAX_WAITING and self._failure is None:
            self._app_turn.clear()
            await self._app_turn.wait()
        if message.get("body"):
            self._answered.append(message["body"])
        self._is_answered = not message.get("more_body", False)
        self._caller_turn.set()

    async def _until(
        self, is_so: Callable[[], bool], limit_s: float | None, late: type[httpx.TimeoutException]
    ) -> None:
        if is_so():
            return
        try:
            async with asyncio.timeout(limit_s):
                while not is_so():
                    self._caller_turn.clear()
                    await self._caller_turn.wait()
        except TimeoutError:
            self.break_off()
            raise late(f"{self.receiver} was silent for {limit_s} s") from None


def scope_of(method: str, path: str, params: Mapping[str, str] | None, headers: Mapping[str, str]) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": urlencode(params or {}).encode(),
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "root_path": "",
        "state": {},
    }
