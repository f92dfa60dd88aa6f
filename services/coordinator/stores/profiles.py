"""What was measured of nodes, in Redis: one hash, node id -> JSON, and in which order they changed. Never expire."""

from pydantic import TypeAdapter
from redis.asyncio import Redis

from services.coordinator.domain.profile import NodeProfile
from services.coordinator.ports import Profiles
from shared.registry.connection import reaching_registry
from shared.registry.keys import ROOT, SINGLES
from shared.registry.scripts import load_scripts

_profile = TypeAdapter(NodeProfile)


class RedisProfiles(Profiles):
    def __init__(self, client: Redis) -> None:
        self._client = client
        self._script = client.register_script(load_scripts()["profile"])

    async def changes(self, since: int) -> tuple[int, tuple[NodeProfile, ...]]:
        with reaching_registry():
            changed: list[tuple[bytes, float]] = await self._client.zrangebyscore(  # type: ignore[assignment]  # as it is with scores
                SINGLES["profiles_changed"], f"({since}", "+inf", withscores=True
            )
            if not changed:
                return since, ()
            kept = await self._client.hmget(SINGLES["profiles"], [node_id.decode() for node_id, _ in changed])
        found = tuple(_profile.validate_json(profile) for profile in kept if profile is not None)
        return int(changed[-1][1]), found

    async def put(self, profile: NodeProfile) -> None:
        with reaching_registry():
            await self._script(keys=[ROOT], args=[profile.node_id, _profile.dump_json(profile)])
