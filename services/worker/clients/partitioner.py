"""Stage files from the partitioner over HTTP."""

from collections.abc import AsyncIterator
from urllib.parse import quote

from services.worker.ports import StageSource
from shared.contracts.messages import StageRef
from shared.contracts.partitioner import StageFileInfo
from shared.domain.errors import PeerUnavailable
from shared.resilience.http_client import PeerClients
from shared.resilience.peer_group import PeerGroup

INFO_TIMEOUT_S = 30.0  # the first cut of a model takes the digest of every tensor


class PartitionerStages(StageSource):
    """The addresses of the partitioner's replicas are known once this worker has joined."""

    def __init__(self, clients: PeerClients) -> None:
        self._clients = clients
        self._urls: tuple[str, ...] = ()
        self._group: PeerGroup | None = None

    def use(self, urls: tuple[str, ...]) -> None:
        """Called at every registration; the addresses seldom change."""
        if urls != self._urls:
            self._urls = urls
            self._group = PeerGroup([self._clients.get(f"partitioner-{place}", url) for place, url in enumerate(urls)])

    async def info(self, ref: StageRef) -> StageFileInfo:
        return await self._partitioner().get(f"{_path(ref)}/info", StageFileInfo, timeout_s=INFO_TIMEOUT_S)

    def download(self, ref: StageRef, *, start: int) -> AsyncIterator[bytes]:
        return self._partitioner().download(_path(ref), start=start)

    def _partitioner(self) -> PeerGroup:
        if self._group is None:
            raise PeerUnavailable("the partitioner is not known before this worker has joined")
        return self._group


def _path(ref: StageRef) -> str:
    return f"/models/{quote(ref.model_id, safe='')}/stages/{ref.layers.start}-{ref.layers.end}"
