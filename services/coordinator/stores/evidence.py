"""Evidence in Redis: one hash per piece of it, with its JSON."""

import json
from collections.abc import Mapping

from redis.asyncio import Redis

from services.coordinator.ports import MAX_EVIDENCE_LISTED, EvidenceStore
from shared.registry.connection import reaching_registry
from shared.registry.keys import ROOT

KEPT_S = 90 * 86_400
FIELD = "json"


class RedisEvidenceStore(EvidenceStore):
    def __init__(self, client: Redis) -> None:
        self._client = client

    async def put(self, evidence_id: str, evidence: Mapping[str, object]) -> None:
        text = json.dumps(evidence, separators=(",", ":"))
        with reaching_registry():
            async with self._client.pipeline(transaction=True) as pipe:
                _ = pipe.hsetnx(_key(evidence_id), FIELD, text)
                _ = pipe.expire(_key(evidence_id), KEPT_S)
                await pipe.execute()

    async def get(self, evidence_id: str) -> Mapping[str, object] | None:
        with reaching_registry():
            found = await self._client.hget(_key(evidence_id), FIELD)
        if found is None:
            return None
        evidence: Mapping[str, object] = json.loads(found)
        return evidence

    async def ids(self) -> tuple[str, ...]:
        found: list[str] = []
        with reaching_registry():
            # Walks all keys: an operator asks, seldom, and an index would have to expire with what it names.
            async for key in self._client.scan_iter(match=_key("ev-*"), count=1_000):
                found.append(key.decode().removeprefix(_key("")))
                if len(found) >= MAX_EVIDENCE_LISTED:
                    break
        return tuple(sorted(found))


def _key(evidence_id: str) -> str:
    return f"{ROOT}:evidence:{evidence_id}"
