"""What was measured of nodes, in memory. Fails while `is_away`."""

from services.coordinator.domain.profile import NodeProfile
from services.coordinator.ports import Profiles
from shared.domain.errors import RegistryUnavailable
from shared.domain.ids import NodeId


class MemoryProfiles(Profiles):
    def __init__(self) -> None:
        self._kept: dict[NodeId, tuple[int, NodeProfile]] = {}
        self._changes = 0
        self.is_away = False

    async def changes(self, since: int) -> tuple[tuple[int, NodeProfile], ...]:
        self._check()
        changed = sorted(self._kept.values(), key=lambda kept: kept[0])
        return tuple((number, profile) for number, profile in changed if number > since)

    async def put(self, profile: NodeProfile, *, after: int) -> int | None:
        self._check()
        last, _ = self._kept.get(profile.node_id, (0, None))
        if last > after:
            return None
        self._changes += 1
        self._kept[profile.node_id] = self._changes, profile
        return self._changes

    async def remove(self, node_id: NodeId) -> None:
        self._check()
        self._kept.pop(node_id, None)

    def _check(self) -> None:
        if self.is_away:
            raise RegistryUnavailable("the registry is away")
