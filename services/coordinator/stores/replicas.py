"""The coordinators that are here, in Redis."""

from pydantic import TypeAdapter
from redis.asyncio import Redis

from services.coordinator.domain.replica import Replica
from services.coordinator.ports import Replicas
from shared.registry.connection import reaching_registry
from shared.registry.keys import ROOT
from shared.registry.scripts import load_scripts

_replica = TypeAdapter(Replica)


class RedisReplicas(Replicas):
    def __init__(self, client: Redis) -> None:
        self._script = client.register_script(load_scripts()["announce"])

    async def announce(self, replica: Replica, *, lease_s: float) -> tuple[Replica, ...]:
        with reaching_registry():
            found = await self._script(keys=[ROOT], args=[_replica.dump_json(replica), round(lease_s * 1000)])
        replicas = map(_replica.validate_json, found)
        return tuple(sorted(replicas, key=lambda each: (each.address, each.boot_id)))

    async def withdraw(self, replica: Replica) -> None:
        await self.announce(replica, lease_s=0.0)
