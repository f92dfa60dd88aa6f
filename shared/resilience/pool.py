"""The connections to one peer, replaceable while calls run on them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

KEEPALIVE_S = 30.0  # below the server's 75 s: a connection must not be closed while a call is put on it


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's own, without one fault of a library below it."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except AttributeError as error:
            # Over uvloop, anyio 4 asks a connection for its socket that was reset at once after it was made: None.
            if error.obj is not None:
                raise
            raise httpx.ConnectError("the connection was reset while it was made", request=request) from error


class ConnectionPool:
    def __init__(self, base_url: str, *, max_connections: int) -> None:
        self._base_url = base_url
        self._max_connections = max_connections
        self._calls = 0
        self._retired = False
        self._client = httpx.AsyncClient(
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

    @property
    def calls(self) -> int:
        """Calls on their way."""
        return self._calls

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[httpx.AsyncClient]:
        self._calls += 1
        try:
            yield self._client
        finally:
            self._calls -= 1
            if self._retired and self._calls == 0:
                await self._client.aclose()

    def replaced(self) -> "ConnectionPool":
        """A fresh pool for later calls; this one closes when its last call has ended."""
        self._retired = True
        return ConnectionPool(self._base_url, max_connections=self._max_connections)

    async def aclose(self) -> None:
        await self._client.aclose()
