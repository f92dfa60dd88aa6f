"""What every store of evidence promises."""

from collections.abc import AsyncIterator

import pytest

from services.coordinator.ports import EvidenceStore
from services.coordinator.stores.evidence import RedisEvidenceStore
from shared.domain.errors import RegistryUnavailable
from shared.registry.connection import make_clients
from tests.fakes.evidence import MemoryEvidenceStore
from tests.fakes.valkey import ValkeyServer

EVIDENCE = {"v": 1, "rule": 6, "detail": "é", "receipts": [{"text": "t", "signature": "ab"}], "ids": [1, 2]}


@pytest.fixture(params=["memory", "redis"])
async def evidence(request: pytest.FixtureRequest) -> AsyncIterator[EvidenceStore]:
    if request.param == "memory":
        yield MemoryEvidenceStore()
        return
    server: ValkeyServer = request.getfixturevalue("valkey")
    server.empty()
    clients = make_clients(server.url)
    yield RedisEvidenceStore(clients.commands)
    await clients.aclose()


async def test_what_is_kept_comes_back_as_it_was(evidence: EvidenceStore) -> None:
    assert await evidence.get("ev-1") is None
    await evidence.put("ev-1", EVIDENCE)
    assert await evidence.get("ev-1") == EVIDENCE


async def test_the_same_again_changes_nothing(evidence: EvidenceStore) -> None:
    await evidence.put("ev-1", EVIDENCE)
    await evidence.put("ev-1", EVIDENCE)
    assert await evidence.get("ev-1") == EVIDENCE


async def test_a_store_that_does_not_answer_says_so() -> None:
    clients = make_clients("redis://127.0.0.1:1/0")
    with pytest.raises(RegistryUnavailable):
        await RedisEvidenceStore(clients.commands).put("ev-1", EVIDENCE)
    await clients.aclose()
