"""Who may not serve, in Redis: one hash, node id -> JSON, and one set of drained nodes. Never expire."""

from pydantic import TypeAdapter
from redis.asyncio import Redis

from services.coordinator.domain.standing import Standing
from services.coordinator.ports import Standings
from shared.domain.ids import NodeId
from shared.registry.connection import reaching_registry
from shared.registry.keys import ROOT, SINGLES
from shared.registry.scripts import load_scripts

_standing = TypeAdapter(Standing)


class RedisStandings(Standings):
    def __init__(self, client: Redis) -> None:
        self._client = client
        self._script = client.register_script(load_scripts()["standing"])

    async def all(self) -> tuple[Standing, ...]:
        with reaching_registry():
            found = await self._client.hvals(SINGLES["standings"])
        return tuple(_standing.validate_json(kept) for kept in found)

    async def put(self, standing: Standing) -> None:
        await self._run(standing, "keep")

    async def remove(self, standing: Standing) -> None:
        await self._run(standing, "forget")

    async def drained(self) -> frozenset[NodeId]:
        with reaching_registry():
            found: set[bytes] = await self._client.smembers(SINGLES["drained"])  # type: ignore[assignment]  # never decoded
        return frozenset(NodeId(node_id.decode()) for node_id in found)

    async def set_drained(self, node_id: NodeId, *, is_drained: bool) -> None:
        with reaching_registry():
            if is_drained:
                await self._client.sadd(SINGLES["drained"], node_id)
            else:
                await self._client.srem(SINGLES["drained"], node_id)

    async def _run(self, standing: Standing, what: str) -> None:
        with reaching_registry():
            await self._script(keys=[ROOT], args=[standing.node_id, _standing.dump_json(standing), what])
