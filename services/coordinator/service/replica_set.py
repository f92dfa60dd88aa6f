"""This coordinator among its replicas: it says that it is here, and knows who else is."""

from services.coordinator.domain.replica import LEASE_S, RENEW_EVERY_S, Replica
from services.coordinator.ports import Replicas
from shared.domain.errors import PeerUnavailable
from shared.runtime.clock import Clock


class ReplicaSet:
    def __init__(self, store: Replicas, own: Replica, clock: Clock) -> None:
        self.own = own
        self._store = store
        self._clock = clock
        self._here: tuple[Replica, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of all that are here, as far as is known; this one is among them."""
        return tuple(dict.fromkeys((*(replica.address for replica in self._here), self.own.address)))

    @property
    def is_first(self) -> bool:
        """Of all that are here: at most one of them takes itself for it, but while one comes or goes."""
        return self._here[:1] == (self.own,)

    async def announce_once(self) -> None:
        """To be called in a loop. Raises `RegistryUnavailable`; then who was here stays so."""
        self._here = await self._store.announce(self.own, lease_s=LEASE_S)
        await self._clock.sleep(RENEW_EVERY_S)

    async def withdraw(self) -> None:
        """This process stops. Raises `RegistryUnavailable`: then its lease lapses."""
        await self._store.withdraw(self.own)

    async def check(self) -> None:
        """For readiness: workers take orders that one key has signed."""
        if not self._here:
            raise PeerUnavailable("this coordinator has not announced itself yet")
        other = next((replica for replica in self._here if replica.key != self.own.key), None)
        if other is not None:
            raise PeerUnavailable(
                f"the coordinator at {other.address} signs with another key: give all of them the same file"
                " coordinator_key in coordination.data_dir"
            )
