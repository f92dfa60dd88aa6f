"""Who may not serve, in Redis: one hash, node id -> JSON. Never expires."""

from pydantic import TypeAdapter
from redis.asyncio import Redis

from services.coordinator.domain.standing import Standing
from services.coordinator.ports import Standings
from shared.domain.ids import NodeId
from shared.registry.connection import reaching_registry
from shared.registry.keys import ROOT

KEY = f"{ROOT}:standings"

_standing = TypeAdapter(Standing)


class RedisStandings(Standings):
    def __init__(self, client: Redis) -> None:
        self._client = client

    async def all(self) -> tuple[Standing, ...]:
        with reaching_registry():
            found = await self._client.hvals(KEY)
        return tuple(_standing.validate_json(kept) for kept in found)

    async def put(self, standing: Standing) -> None:
        with reaching_registry():
            await self._client.hset(KEY, standing.node_id, _standing.dump_json(standing))

    async def remove(self, node_id: NodeId) -> None:
        with reaching_registry():
            await self._client.hdel(KEY, node_id)
