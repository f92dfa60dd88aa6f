"""Standings kept in memory. Fails while `is_away`."""

from services.coordinator.domain.standing import Standing
from services.coordinator.ports import Standings
from shared.domain.errors import RegistryUnavailable
from shared.domain.ids import NodeId


class MemoryStandings(Standings):
    def __init__(self) -> None:
        self._kept: dict[NodeId, Standing] = {}
        self.is_away = False

    async def all(self) -> tuple[Standing, ...]:
        self._check()
        return tuple(self._kept.values())

    async def put(self, standing: Standing) -> None:
        self._check()
        self._kept[standing.node_id] = standing

    async def remove(self, node_id: NodeId) -> None:
        self._check()
        self._kept.pop(node_id, None)

    def _check(self) -> None:
        if self.is_away:
            raise RegistryUnavailable("the registry is away")
