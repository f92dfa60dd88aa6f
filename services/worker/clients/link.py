"""A link as one long POST over HTTP."""

import hashlib
from collections.abc import AsyncIterator

from services.worker.ports import LinkCarrier
from shared.contracts.messages import Peer
from shared.resilience.http_client import PeerClients


class HttpLinkCarrier(LinkCarrier):
    def __init__(self, clients: PeerClients) -> None:
        self._clients = clients

    async def carry(self, peer: Peer, chunks: AsyncIterator[bytes]) -> None:
        # The token is made for one run of the peer: a worker that was started anew is not kept waiting for what the
        # run before did. Its digest stands for that run, because incarnations may be shown.
        run = hashlib.blake2b(peer.link_token.encode(), digest_size=8).hexdigest()
        client = self._clients.get(peer.node_id, peer.address, incarnation=run)
        await client.stream_post("/links", chunks, bearer=peer.link_token)
