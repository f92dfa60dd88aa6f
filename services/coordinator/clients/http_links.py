"""A link to a worker as one long POST over HTTP."""

from collections.abc import AsyncIterator

from services.coordinator.ports import Links
from shared.domain.ids import NodeId
from shared.resilience.http_client import PeerClients


class HttpLinks(Links):
    def __init__(self, peers: PeerClients) -> None:
        """`peers` must not carry the service token: workers are not trusted with it."""
        self._peers = peers

    async def carry(self, node_id: NodeId, address: str, token: str, chunks: AsyncIterator[bytes]) -> None:
        await self._peers.get(node_id, address).stream_post("/links", chunks, bearer=token)
