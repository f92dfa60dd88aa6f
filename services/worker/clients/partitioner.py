"""Stage files from the partitioner over HTTP."""

from collections.abc import AsyncIterator
from urllib.parse import quote

from services.worker.ports import StageSource
from shared.contracts.messages import StageRef
from shared.contracts.partitioner import StageFileInfo
from shared.domain.errors import PeerUnavailable
from shared.resilience.http_client import PeerClient, PeerClients

INFO_TIMEOUT_S = 30.0  # the first cut of a model takes the digest of every tensor


class PartitionerStages(StageSource):
    """The partitioner's address is known once this worker has joined."""

    def __init__(self, clients: PeerClients) -> None:
        self._clients = clients
        self._url: str | None = None

    def use(self, url: str) -> None:
        self._url = url

    async def info(self, ref: StageRef) -> StageFileInfo:
        return await self._client().get(f"{_path(ref)}/info", StageFileInfo, timeout_s=INFO_TIMEOUT_S)

    def download(self, ref: StageRef, *, start: int) -> AsyncIterator[bytes]:
        return self._client().download(_path(ref), start=start)

    def _client(self) -> PeerClient:
        if self._url is None:
            raise PeerUnavailable("the partitioner is not known before this worker has joined")
        return self._clients.get("partitioner", self._url)


def _path(ref: StageRef) -> str:
    return f"/models/{quote(ref.model_id, safe='')}/stages/{ref.layers.start}-{ref.layers.end}"
