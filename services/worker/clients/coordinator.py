"""The coordinator over HTTP."""

from services.worker.ports import Coordinator, Report
from shared.contracts.coordinator import Registered, RegisterNode
from shared.contracts.messages import Ack, Heartbeat
from shared.domain.errors import CircuitOpen
from shared.resilience.http_client import PeerClient

HEARTBEAT_TIMEOUT_S = 1.0


class HttpCoordinator(Coordinator):
    def __init__(self, client: PeerClient, join_token: str) -> None:
        self._client = client
        self._join_token = join_token
        self._node_token: str | None = None

    async def register(self, request: RegisterNode) -> Registered:
        await self._client.check()  # also tells whether this is another run of it, whose failures count anew
        registered = await self._client.post("/nodes", request, Registered, bearer=self._join_token, idempotent=True)
        self._node_token = registered.node_token
        return registered

    async def tell(self, report: Report) -> None:
        try:
            await self._post(report)
        except CircuitOpen:
            await self._client.check()
            await self._post(report)

    async def _post(self, report: Report) -> None:
        is_beat = isinstance(report, Heartbeat)  # the next one is better than this one again
        await self._client.post(
            "/messages",
            report,
            Ack,
            bearer=self._node_token,
            idempotent=not is_beat,
            timeout_s=HEARTBEAT_TIMEOUT_S if is_beat else 2.0,
        )
