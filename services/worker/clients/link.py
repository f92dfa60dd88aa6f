"""A link as one long POST over HTTP."""

from collections.abc import AsyncIterator

from services.worker.ports import LinkCarrier
from shared.contracts.messages import Peer
from shared.resilience.http_client import PeerClients


class HttpLinkCarrier(LinkCarrier):
    def __init__(self, clients: PeerClients) -> None:
        self._clients = clients

    async def carry(self, peer: Peer, chunks: AsyncIterator[bytes]) -> None:
        client = self._clients.get(peer.node_id, peer.address)
        await client.stream_post("/links", chunks, bearer=peer.link_token)
