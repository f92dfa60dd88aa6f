"""The coordinator over HTTP."""

from urllib.parse import quote

from services.scheduler.domain.capacity import ReadyNode
from services.scheduler.ports import Coordinator
from shared.contracts.base import Empty
from shared.contracts.coordinator import NodeList, NodeView, OpenSession, Place
from shared.domain.ids import TaskId
from shared.domain.plan import NodeCapability, PartitionPlan
from shared.domain.session import NodeState
from shared.resilience.peer_group import PeerGroup

CANCEL_TIMEOUT_S = 1.0  # the registry has fenced the session already: telling frees its slots sooner
PLACE_TIMEOUT_S = 10.0  # every worker is told


class HttpCoordinator(Coordinator):
    def __init__(self, client: PeerGroup) -> None:
        self._client = client

    async def ready_nodes(self) -> tuple[ReadyNode, ...]:
        return tuple(
            ReadyNode(capability=node.capability, boot_id=node.boot_id, slots_used=node.slots_used)
            for node in await self._nodes(NodeState.READY)
        )

    async def present_nodes(self) -> tuple[NodeCapability, ...]:
        return tuple(node.capability for node in await self._nodes(NodeState.READY, NodeState.SUSPECT))

    async def _nodes(self, *states: NodeState) -> list[NodeView]:
        """In these states, by id."""
        nodes = (await self._client.get("/nodes", NodeList)).nodes
        return sorted((node for node in nodes if node.state in states), key=lambda node: node.node_id)

    async def open_session(self, wanted: OpenSession) -> None:
        await self._client.post("/sessions", wanted, Empty, idempotent=True)

    async def cancel_session(self, task_id: TaskId) -> None:
        path = f"/sessions/{quote(task_id, safe='')}/cancel"
        await self._client.post_to_all(path, Empty, timeout_s=CANCEL_TIMEOUT_S)  # nobody says whose session it is

    async def place(self, plan: PartitionPlan) -> None:
        await self._client.post("/placements", Place(plan=plan), Empty, timeout_s=PLACE_TIMEOUT_S, idempotent=True)
