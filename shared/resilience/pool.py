"""The connections to one peer, replaceable while calls run on them."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Protocol

import httpx

KEEPALIVE_S = 30.0  # below the server's 75 s: a connection must not be closed while a call is put on it


class Connections(Protocol):
    """What carries requests to one peer; `httpx.AsyncClient` does so over sockets."""

    def stream(
        self,
        method: str,
        url: str,
        *,
        content: bytes | AsyncIterator[bytes] | None,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        timeout: httpx.Timeout,
    ) -> AbstractAsyncContextManager[httpx.Response]:
        """The answer, once its head has come. `url`: path on the peer. Raises `httpx.TransportError`."""

    async def aclose(self) -> None:
        """Calls under way fail with `httpx.TransportError`."""


Connect = Callable[[str], Connections]
"""Makes the connections to a base URL, each time other ones."""


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's own, without two faults of libraries below it."""

    _is_closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = await super().handle_async_request(request)
        except AttributeError as error:
            # Over uvloop, anyio 4 asks a connection for its socket that was reset at once after it was made: None.
            if error.obj is not None:
                raise
            raise httpx.ConnectError("the connection was reset while it was made", request=request) from error
        if self._is_closed:
            # httpcore closes the connections that there are; those that were being made stay open for good.
            await response.aclose()
            await response.extensions["network_stream"].aclose()
            raise httpx.ReadError("the connections were closed before the answer came", request=request)
        return response

    async def aclose(self) -> None:
        self._is_closed = True
        await super().aclose()


class ConnectionPool:
    def __init__(self, base_url: str, *, max_connections: int, connect: Connect | None = None) -> None:
        """`connect` None: sockets."""
        self._base_url = base_url
        self._max_connections = max_connections
        self._connect = connect
        self._calls = 0
        self._retired = False
        self._client = connect(base_url) if connect else _sockets(base_url, max_connections)

    @property
    def calls(self) -> int:
        """Calls on their way."""
        return self._calls

    def lease(self) -> "Lease":
        """To be entered around one call."""
        return Lease(self)

    def take(self) -> Connections:
        self._calls += 1
        return self._client

    async def give_back(self) -> None:
        self._calls -= 1
        if self._retired and self._calls == 0:
            await self._client.aclose()

    def replaced(self) -> "ConnectionPool":
        """A fresh pool for later calls; this one closes when its last call has ended."""
        self._retired = True
        return ConnectionPool(self._base_url, max_connections=self._max_connections, connect=self._connect)

    async def aclose(self) -> None:
        await self._client.aclose()


class Lease:
    """The connections of a pool, which stay open until it ends."""

    __slots__ = ("_pool",)

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    async def __aenter__(self) -> Connections:
        return self._pool.take()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._pool.give_back()


def _sockets(base_url: str, max_connections: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=base_url,
        transport=_Transport(
            trust_env=False,
            http2=False,
            verify=base_url.startswith("https:"),  # loading the trust store takes time that plain HTTP can spare
            limits=httpx.Limits(max_connections=max_connections, keepalive_expiry=KEEPALIVE_S),
        ),
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # kept ones would grow as the peer likes
        headers={"Accept-Encoding": "identity", "User-Agent": "butterfly"},
    )
