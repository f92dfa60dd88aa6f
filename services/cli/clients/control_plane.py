"""The few questions the operator's command asks of coordinator and partitioner."""

from collections.abc import Callable, Mapping
from urllib.parse import quote

from pydantic import RootModel

from shared.contracts.base import Empty
from shared.contracts.coordinator import EvidenceList, EvidenceSummary, NodeList, NodeView, QuarantineNode
from shared.contracts.partitioner import ModelList
from shared.domain.errors import ModelNotFound
from shared.resilience.hooks import PeerHooks
from shared.resilience.http_client import PeerClient

_RESCAN_LIMIT_S = 60.0
"""A new model is read once as a whole for its digests."""


class _Evidence(RootModel[dict[str, object]]):
    """Kept as it is, for those who check it."""


class Coordinator:
    def __init__(self, url: str, *, service_token: str, now: Callable[[], float]) -> None:
        self._peer = _peer("the coordinator", url, service_token, now)

    async def nodes(self) -> tuple[NodeView, ...]:
        return (await self._peer.get("/nodes", NodeList)).nodes

    async def quarantine(self, node_id: str, reason: str) -> None:
        """Until it is reinstated. Raises `NodeNotFound`, `RegistryUnavailable`."""
        await self._peer.post(_of(node_id, "quarantine"), QuarantineNode(reason=reason), Empty, idempotent=True)

    async def reinstate(self, node_id: str) -> None:
        """Raises `NodeNotFound` when nothing keeps the node away, `RegistryUnavailable`."""
        await self._peer.post(_of(node_id, "reinstate"), None, Empty)

    async def drain(self, node_id: str) -> None:
        """Raises `NodeNotFound`."""
        await self._peer.post(_of(node_id, "drain"), None, Empty, idempotent=True)

    async def resume(self, node_id: str) -> None:
        """Raises `NodeNotFound`."""
        await self._peer.post(_of(node_id, "resume"), None, Empty, idempotent=True)

    async def measure(self, node_id: str) -> None:
        """Once nobody needs the node. Raises `NodeNotFound`, `InvalidInput` (this cluster measures nothing)."""
        await self._peer.post(_of(node_id, "measure"), None, Empty, idempotent=True)

    async def evidence(self) -> tuple[EvidenceSummary, ...]:
        """Raises `RegistryUnavailable`."""
        return (await self._peer.get("/evidence", EvidenceList)).evidence

    async def evidence_of(self, evidence_id: str) -> Mapping[str, object]:
        """Raises `EvidenceNotFound`, `RegistryUnavailable`."""
        return (await self._peer.get(f"/evidence/{quote(evidence_id, safe='')}", _Evidence)).root

    async def aclose(self) -> None:
        await self._peer.aclose()


class Partitioner:
    def __init__(self, url: str, *, service_token: str, now: Callable[[], float]) -> None:
        self._peer = _peer("the partitioner", url, service_token, now)

    async def num_layers(self, model: str) -> int:
        """Raises `ModelNotFound`, with the partitioner's reason when it refused the file."""
        listed = await self._peer.get("/models", ModelList)
        for info in listed.models:
            if info.model_id == model:
                return info.num_layers
        refused = next((file.reason for file in listed.refused if file.file.startswith(f"{model}.")), "it is not there")
        raise ModelNotFound(f"the partitioner does not serve {model}: {refused}")

    async def rescan(self) -> ModelList:
        """Let it read the models folder again."""
        return await self._peer.post("/models/rescan", None, ModelList, timeout_s=_RESCAN_LIMIT_S, idempotent=True)

    async def aclose(self) -> None:
        await self._peer.aclose()


def _of(node_id: str, action: str) -> str:
    return f"/nodes/{quote(node_id, safe='')}/{action}"


def _peer(name: str, url: str, service_token: str, now: Callable[[], float]) -> PeerClient:
    return PeerClient(name=name, base_url=url, service_token=service_token, hooks=PeerHooks(), now=now)
