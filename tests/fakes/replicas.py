"""The coordinators that are here, in memory."""

from collections.abc import Callable

from services.coordinator.domain.replica import Replica
from services.coordinator.ports import Replicas


class MemoryReplicas(Replicas):
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._until_s: dict[Replica, float] = {}

    async def announce(self, replica: Replica, *, lease_s: float) -> tuple[Replica, ...]:
        self._until_s[replica] = self._now() + lease_s
        self._until_s = {each: end_s for each, end_s in self._until_s.items() if end_s > self._now()}
        return tuple(sorted(self._until_s, key=lambda each: (each.address, each.boot_id)))

    async def withdraw(self, replica: Replica) -> None:
        self._until_s.pop(replica, None)
