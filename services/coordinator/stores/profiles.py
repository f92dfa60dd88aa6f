"""What was measured of nodes, in Redis: one hash, node id -> JSON, and in which order they changed. Never expire."""

from pydantic import TypeAdapter
from redis.asyncio import Redis

from services.coordinator.domain.profile import NodeProfile
from services.coordinator.ports import Profiles
from shared.domain.ids import NodeId
from shared.registry.connection import reaching_registry
from shared.registry.keys import ROOT, SINGLES
from shared.registry.scripts import load_scripts

_profile = TypeAdapter(NodeProfile)


class RedisProfiles(Profiles):
    def __init__(self, client: Redis) -> None:
        self._client = client
        self._script = client.register_script(load_scripts()["profile"])

    async def changes(self, since: int) -> tuple[tuple[int, NodeProfile], ...]:
        with reaching_registry():
            changed: list[tuple[bytes, float]] = await self._client.zrangebyscore(  # type: ignore[assignment]  # as it is with scores
                SINGLES["profiles_changed"], f"({since}", "+inf", withscores=True
            )
            if not changed:
                return ()
            kept = await self._client.hmget(SINGLES["profiles"], [node_id.decode() for node_id, _ in changed])
        return tuple(
            (int(number), _profile.validate_json(profile))
            for (_, number), profile in zip(changed, kept, strict=True)
            if profile is not None
        )

    async def put(self, profile: NodeProfile, *, after: int) -> int | None:
        with reaching_registry():
            number = await self._script(keys=[ROOT], args=[profile.node_id, after, _profile.dump_json(profile)])
        return int(number) or None

    async def remove(self, node_id: NodeId) -> None:
        with reaching_registry():
            async with self._client.pipeline(transaction=True) as pipeline:
                _ = pipeline.hdel(SINGLES["profiles"], node_id)
                _ = pipeline.zrem(SINGLES["profiles_changed"], node_id)
                await pipeline.execute()
