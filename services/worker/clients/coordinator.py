"""The coordinator over HTTP."""

from services.worker.ports import Coordinator, JoinRefused, Report
from shared.contracts.coordinator import Registered, RegisterNode
from shared.contracts.messages import Ack, Heartbeat
from shared.domain.errors import CircuitOpen, InvalidInput, NotAllowed, NotFound, ProtocolViolation
from shared.resilience.http_client import PeerClient

SERVICE = "coordinator"
HEARTBEAT_TIMEOUT_S = 1.0


class HttpCoordinator(Coordinator):
    def __init__(self, client: PeerClient, join_token: str) -> None:
        self._client = client
        self._join_token = join_token
        self._node_token: str | None = None

    async def register(self, request: RegisterNode) -> Registered:
        client = self._client
        try:
            service = await client.service_name()  # also tells whether this is another run, whose failures count anew
            if service != SERVICE:
                raise _no_coordinator(client.base_url, f"its {service} answers there")
            registered = await client.post("/nodes", request, Registered, bearer=self._join_token, idempotent=True)
        except NotAllowed as error:
            raise JoinRefused(
                f"the coordinator at {client.base_url} refuses this worker ({error.message}): give it the cluster's"
                " join token (--token, or security.join_token)"
            ) from error
        except (NotFound, ProtocolViolation) as error:
            raise _no_coordinator(client.base_url, error.message) from error
        except InvalidInput as error:
            raise JoinRefused(f"the coordinator at {client.base_url} refuses this worker: {error.message}") from error
        self._node_token = registered.node_token
        return registered

    async def tell(self, report: Report) -> Ack:
        try:
            return await self._post(report)
        except CircuitOpen:
            await self._client.check()
            return await self._post(report)

    async def _post(self, report: Report) -> Ack:
        is_beat = isinstance(report, Heartbeat)  # the next one is better than this one again
        return await self._client.post(
            "/messages",
            report,
            Ack,
            bearer=self._node_token,
            idempotent=not is_beat,
            timeout_s=HEARTBEAT_TIMEOUT_S if is_beat else 2.0,
        )


def _no_coordinator(url: str, why: str) -> JoinRefused:
    return JoinRefused(
        f"there is no coordinator at {url} ({why}): join by the coordinator's address, which `butterfly up` prints"
        " (--join, or network.peer_addresses)"
    )
