"""Calls to the coordinator."""

from services.api.ports import Nodes
from shared.contracts.coordinator import NodeList, NodeView, PublicKeys
from shared.resilience.peer_group import PeerGroup


class HttpNodes(Nodes):
    def __init__(self, peer: PeerGroup) -> None:
        self._peer = peer

    async def nodes(self) -> tuple[NodeView, ...]:
        return tuple(sorted((await self._peer.get("/nodes", NodeList)).nodes, key=lambda node: node.node_id))

    async def keys(self) -> PublicKeys:
        return await self._peer.get("/keys", PublicKeys)
