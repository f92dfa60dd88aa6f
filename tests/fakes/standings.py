"""Standings kept in memory. Fails while `is_away`."""

from services.coordinator.domain.standing import Standing
from services.coordinator.ports import Standings
from shared.domain.errors import RegistryUnavailable
from shared.domain.ids import NodeId


class MemoryStandings(Standings):
    def __init__(self) -> None:
        self._kept: dict[NodeId, Standing] = {}
        self._drained: set[NodeId] = set()
        self.is_away = False

    async def all(self) -> tuple[Standing, ...]:
        self._check()
        return tuple(self._kept.values())

    async def put(self, standing: Standing) -> None:
        self._check()
        kept = self._kept.get(standing.node_id)
        if kept is None or kept.strength < standing.strength:
            self._kept[standing.node_id] = standing

    async def remove(self, standing: Standing) -> None:
        self._check()
        kept = self._kept.get(standing.node_id)
        if kept is not None and kept.strength <= standing.strength:
            del self._kept[standing.node_id]

    async def drained(self) -> frozenset[NodeId]:
        self._check()
        return frozenset(self._drained)

    async def set_drained(self, node_id: NodeId, *, is_drained: bool) -> None:
        self._check()
        if is_drained:
            self._drained.add(node_id)
        else:
            self._drained.discard(node_id)

    def _check(self) -> None:
        if self.is_away:
            raise RegistryUnavailable("the registry is away")
