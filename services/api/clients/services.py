"""Asks the other control services whether they are ready."""

import asyncio
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from services.api.ports import ServiceHealth, Services
from shared.domain.errors import ButterflyError
from shared.resilience.http_client import PeerClient

TIMEOUT_S = 1.0


class _Ready(BaseModel):
    model_config = ConfigDict(extra="ignore")

    status: str


class HttpServices(Services):
    def __init__(self, peers: Sequence[PeerClient]) -> None:
        """`peers`: clients used for nothing else, so that what is learnt here ejects nobody."""
        self._peers = tuple(peers)

    async def health(self) -> Mapping[str, ServiceHealth]:
        found = await asyncio.gather(*(self._ask(peer) for peer in self._peers))
        return {peer.name: health for peer, health in zip(self._peers, found, strict=True)}

    async def _ask(self, peer: PeerClient) -> ServiceHealth:
        try:
            answer = await peer.get("/readyz", _Ready, timeout_s=TIMEOUT_S)
        except ButterflyError as error:
            return ServiceHealth(ready=False, error=error.message)
        return ServiceHealth(ready=True, error=None if answer.status == "ready" else answer.status)
