"""Calls to the coordinator."""

from services.api.ports import Nodes
from shared.contracts.coordinator import NodeList, NodeView, PublicKeys
from shared.resilience.peer_group import PeerGroup


class HttpNodes(Nodes):
    def __init__(self, peer: PeerGroup) -> None:
        self._peer = peer

    async def nodes(self, *, with_stage_times: bool = False) -> tuple[NodeView, ...]:
        told = await self._peer.get("/nodes", NodeList, params={"with_stage_times": str(with_stage_times).lower()})
        return tuple(sorted(told.nodes, key=lambda node: node.node_id))

    async def keys(self) -> PublicKeys:
        return await self._peer.get("/keys", PublicKeys)
