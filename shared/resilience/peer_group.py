"""Calls to a service of one or several replicas: whoever answered last is asked, the next one when it does not answer.

With several this is the layer that retries: their clients try each call once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from pydantic import BaseModel

from shared.domain.errors import ButterflyError, CircuitOpen, PeerUnavailable, ServerDraining
from shared.resilience.http_client import PeerClient

Answer = TypeVar("Answer")
T = TypeVar("T", bound=BaseModel)


class PeerGroup:
    """Calls may overlap. Each raises what a replica answered, or the error of the last one that did not."""

    def __init__(self, clients: Sequence[PeerClient], *, first: int = 0) -> None:
        """`first`: who is asked first."""
        self._clients = tuple(clients)
        self._place = first % len(self._clients)

    async def get(
        self, path: str, reply: type[T], *, params: Mapping[str, str] | None = None, timeout_s: float = 2.0
    ) -> T:
        def ask(client: PeerClient) -> Awaitable[T]:
            return client.get(path, reply, params=params, timeout_s=timeout_s)

        return await self._ask(ask, idempotent=True)

    async def post(
        self, path: str, body: BaseModel | None, reply: type[T], *, timeout_s: float = 2.0, idempotent: bool = False
    ) -> T:
        """`idempotent`: the service does the same on a second arrival, at whichever replica. Another one is asked only
        where the first cannot have taken it, unless it is."""

        def ask(client: PeerClient) -> Awaitable[T]:
            return client.post(path, body, reply, timeout_s=timeout_s, idempotent=idempotent)

        return await self._ask(ask, idempotent=idempotent)

    async def post_to_all(self, path: str, reply: type[T], *, timeout_s: float = 2.0) -> None:
        """Without a body, one try each; raises the first error once all have been told."""
        told = await asyncio.gather(*(self._told(client, path, reply, timeout_s) for client in self._clients))
        for error in told:
            if error is not None:
                raise error

    async def download(self, path: str, *, start: int = 0) -> AsyncIterator[bytes]:
        """As `PeerClient.download`. Another replica is asked where the first sends nothing at all."""
        for turn, place in enumerate(self._places(), start=1):
            has_begun = False
            try:
                async for chunk in self._clients[place].download(path, start=start):
                    has_begun, self._place = True, place
                    yield chunk
            except PeerUnavailable:
                if has_begun or turn == len(self._clients):
                    raise
            else:
                return

    async def check(self) -> None:
        """Raise `PeerUnavailable` unless some replica answers at /livez; hears which of them were started anew."""
        found = await asyncio.gather(*(_error_of(client.check()) for client in self._clients))
        if all(error is not None for error in found):
            raise found[0] or PeerUnavailable("nobody answers")

    async def _ask(self, call: Callable[[PeerClient], Awaitable[Answer]], *, idempotent: bool) -> Answer:
        passes_on = (PeerUnavailable, ServerDraining) if idempotent else (CircuitOpen, ServerDraining)
        *earlier, last = self._places()
        for place in earlier:
            try:
                return await self._answer(place, call)
            except passes_on:
                continue
        return await self._answer(last, call)

    async def _answer(self, place: int, call: Callable[[PeerClient], Awaitable[Answer]]) -> Answer:
        answer = await call(self._clients[place])
        self._place = place
        return answer

    def _places(self) -> list[int]:
        """In the order in which they are asked now."""
        return [(self._place + step) % len(self._clients) for step in range(len(self._clients))]

    async def _told(self, client: PeerClient, path: str, reply: type[T], timeout_s: float) -> ButterflyError | None:
        return await _error_of(client.post(path, None, reply, timeout_s=timeout_s))


async def _error_of(call: Awaitable[object]) -> ButterflyError | None:
    try:
        await call
    except ButterflyError as error:
        return error
    return None
