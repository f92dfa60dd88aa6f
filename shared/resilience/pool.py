"""The connections to one peer, replaceable while calls run on them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

KEEPALIVE_S = 30.0  # below the server's 75 s: a connection must not be closed while a call is put on it


class ConnectionPool:
    def __init__(self, base_url: str, *, max_connections: int) -> None:
        self._base_url = base_url
        self._max_connections = max_connections
        self._calls = 0
        self._retired = False
        self._client = httpx.AsyncClient(
            base_url=base_url,
            trust_env=False,
            follow_redirects=False,
            http2=False,
            verify=base_url.startswith("https:"),  # loading the trust store takes time that plain HTTP can spare
            limits=httpx.Limits(max_connections=max_connections, keepalive_expiry=KEEPALIVE_S),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # kept ones would grow as the peer likes
            headers={"Accept-Encoding": "identity", "User-Agent": "butterfly"},
        )

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
