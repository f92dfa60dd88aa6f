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

    async def changes(self, since: int) -> tuple[int, tuple[NodeProfile, ...]]:
        self._check()
        return self._changes, tuple(profile for number, profile in self._kept.values() if number > since)

    async def put(self, profile: NodeProfile) -> None:
        self._check()
        self._changes += 1
        self._kept[profile.node_id] = self._changes, profile

    def _check(self) -> None:
        if self.is_away:
            raise RegistryUnavailable("the registry is away")
