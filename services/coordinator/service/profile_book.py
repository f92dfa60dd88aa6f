"""What has been measured of the nodes, at hand in memory and shared by all replicas."""

from collections.abc import Iterable, Sequence

from services.coordinator.domain.profile import NodeProfile
from services.coordinator.ports import Profiles
from shared.domain.ids import NodeId


class ProfileBook:
    def __init__(self, store: Profiles) -> None:
        self._store = store
        self._version = 0
        self._known: dict[NodeId, NodeProfile] = {}
        self._unsaved: set[NodeId] = set()

    def of(self, node_id: NodeId) -> NodeProfile:
        return self._known.get(node_id, NodeProfile(node_id))

    def put(self, profiles: Iterable[NodeProfile]) -> None:
        """They hold here at once; `save` has the other replicas hear of those that are new."""
        for profile in profiles:
            if self._known.get(profile.node_id) != profile:
                self._known[profile.node_id] = profile
                self._unsaved.add(profile.node_id)

    async def refresh(self) -> Sequence[NodeId]:
        """Read what others have kept since; returns whose profiles are new here. Raises `RegistryUnavailable`."""
        self._version, changed = await self._store.changes(self._version)
        new = [
            profile
            for profile in changed
            if profile.node_id not in self._unsaved and self._known.get(profile.node_id) != profile
        ]
        self._known.update((profile.node_id, profile) for profile in new)
        return [profile.node_id for profile in new]

    async def save(self) -> None:
        """Raises `RegistryUnavailable`: the next call tries again."""
        for node_id in list(self._unsaved):
            await self._store.put(self._known[node_id])
            self._unsaved.discard(node_id)
