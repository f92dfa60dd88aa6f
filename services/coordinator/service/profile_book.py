"""What has been measured of the nodes, at hand in memory and shared by all replicas."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from services.coordinator.domain.profile import KEPT_DAYS, NodeProfile, assumed_speeds, is_news
from services.coordinator.ports import Profiles
from shared.domain.ids import NodeId
from shared.domain.measured import Pace
from shared.domain.plan import NodeCapability


class ProfileBook:
    def __init__(self, store: Profiles) -> None:
        self._store = store
        self._version = 0
        self._known: dict[NodeId, NodeProfile] = {}
        self._kept: dict[NodeId, tuple[int, NodeProfile]] = {}
        """As the store has them, as far as is known here, and the number of that change."""
        self._unsaved: set[NodeId] = set()
        self._assumed_speed: Callable[[int], float] = float
        self._exchanging = asyncio.Lock()
        """One exchange with the store at a time."""

    def of(self, node_id: NodeId) -> NodeProfile:
        return self._known.get(node_id, NodeProfile(node_id))

    def all(self) -> Sequence[NodeProfile]:
        """Of nodes that are here or were."""
        return tuple(self._known.values())

    def put(self, profiles: Iterable[NodeProfile]) -> None:
        """They hold here at once; `save` has the other replicas hear of those that are news."""
        for profile in profiles:
            if self.of(profile.node_id) != profile:
                self._known[profile.node_id] = profile
                _, kept = self._kept_of(profile.node_id)
                if is_news(kept, profile):
                    self._unsaved.add(profile.node_id)

    async def refresh(self) -> Sequence[NodeId]:
        """Read what others have kept since; returns whose profiles are new here. What is not saved here yet of these
        nodes is lost: it may go back to what the others have left behind. Raises `RegistryUnavailable`."""
        new: list[NodeId] = []
        async with self._exchanging:
            for number, profile in await self._store.changes(self._version):
                self._version = max(self._version, number)
                if number <= self._kept_of(profile.node_id)[0]:
                    continue  # it was this replica that put it
                self._kept[profile.node_id] = number, profile
                self._unsaved.discard(profile.node_id)
                if self.of(profile.node_id) != profile:
                    self._known[profile.node_id] = profile
                    new.append(profile.node_id)
        return new

    async def save(self) -> bool:
        """False: another replica was faster with some, whose word comes with the next `refresh`. Raises
        `RegistryUnavailable`: the next call tries again."""
        is_saved = True
        async with self._exchanging:
            for node_id in list(self._unsaved):
                profile = self._known[node_id]
                number = await self._store.put(profile, after=self._kept_of(node_id)[0])
                if number is None:
                    is_saved = False
                    continue
                self._kept[node_id] = number, profile
                if self._known[node_id] is profile:  # else there was something newer meanwhile
                    self._unsaved.discard(node_id)
        return is_saved

    async def forget_before(self, today: int, is_here: Callable[[NodeId], bool]) -> None:
        """Remove the profiles of nodes that have been away for long. Raises `RegistryUnavailable`."""
        old = [profile.node_id for profile in self.all() if profile.last_day < today - KEPT_DAYS]
        async with self._exchanging:
            for node_id in old:
                if not is_here(node_id):
                    await self._store.remove(node_id)
                    self._known.pop(node_id, None)
                    self._kept.pop(node_id, None)
                    self._unsaved.discard(node_id)

    # --- what plans go by

    def assume(self, measured: Sequence[tuple[int, Pace]]) -> None:
        """Nodes that were not tried yet are like these. `measured`: cores and levels."""
        self._assumed_speed = assumed_speeds(measured)

    def figures_of(self, declared: NodeCapability) -> NodeCapability:
        """What a node can do, whatever it says of its speed."""
        profile = self.of(declared.node_id)
        speed = self._assumed_speed(declared.cores) if profile.level is None else profile.level.speed
        return replace(declared, speed=speed, measured=profile.measured)

    def _kept_of(self, node_id: NodeId) -> tuple[int, NodeProfile]:
        return self._kept.get(node_id, (0, NodeProfile(node_id)))
