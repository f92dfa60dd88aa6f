"""Workers over HTTP: everything goes to their `POST /messages`."""

from services.coordinator.ports import Worker, Workers
from shared.contracts.base import Contract
from shared.contracts.messages import (
    Ack,
    LoadStage,
    MeasureNode,
    MeetPeers,
    SealWindow,
    SessionStart,
    SessionStop,
    WindowCommitted,
    WindowRelease,
    WorkAssignment,
)
from shared.domain.ids import NodeId
from shared.domain.numerics import StageFacts
from shared.resilience.http_client import PeerClients

TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 1.0  # a recovery waits for it


class HttpWorker(Worker):
    def __init__(self, peers: PeerClients, node_id: NodeId, address: str, *, boot_id: str, token: str) -> None:
        self._peers = peers
        self._node_id = node_id
        self._address = address
        self._boot_id = boot_id
        self._token = token

    async def load(self, message: LoadStage) -> StageFacts | None:
        return (await self._post(message)).facts

    async def assign(self, message: WorkAssignment) -> bool:
        return (await self._post(message)).ready

    async def start(self, message: SessionStart) -> None:
        await self._post(message)

    async def tell(self, message: WindowRelease | SealWindow | WindowCommitted) -> None:
        await self._post(message)

    async def meet(self, message: MeetPeers) -> None:
        await self._post(message)

    async def measure(self, message: MeasureNode) -> bool:
        return not (await self._post(message)).ready

    async def stop(self, message: SessionStop) -> None:
        await self._post(message, timeout_s=STOP_TIMEOUT_S, retried=False)

    async def _post(self, message: Contract, *, timeout_s: float = TIMEOUT_S, retried: bool = True) -> Ack:
        client = self._peers.get(self._node_id, self._address, incarnation=self._boot_id)
        return await client.post("/messages", message, Ack, timeout_s=timeout_s, idempotent=retried, bearer=self._token)


class HttpWorkers(Workers):
    def __init__(self, peers: PeerClients) -> None:
        """`peers` must not carry the service token: workers are not trusted with it."""
        self._peers = peers

    def connect(self, node_id: NodeId, address: str, *, boot_id: str, token: str) -> Worker:
        return HttpWorker(self._peers, node_id, address, boot_id=boot_id, token=token)

    async def forget(self, node_id: NodeId) -> None:
        await self._peers.forget(node_id)
