"""What every store of evidence promises."""

import pytest

from services.coordinator.ports import EvidenceStore
from services.coordinator.stores.evidence import RedisEvidenceStore
from shared.domain.errors import RegistryUnavailable
from shared.registry.connection import RedisClients, make_clients
from tests.fakes.evidence import MemoryEvidenceStore

EVIDENCE = {"v": 1, "rule": 6, "detail": "é", "receipts": [{"text": "t", "signature": "ab"}], "ids": [1, 2]}


@pytest.fixture
def evidence(clients: RedisClients | None) -> EvidenceStore:
    return MemoryEvidenceStore() if clients is None else RedisEvidenceStore(clients.commands)


async def test_what_is_kept_comes_back_as_it_was(evidence: EvidenceStore) -> None:
    assert await evidence.get("ev-1") is None
    await evidence.put("ev-1", EVIDENCE)
    assert await evidence.get("ev-1") == EVIDENCE


async def test_the_same_again_changes_nothing(evidence: EvidenceStore) -> None:
    await evidence.put("ev-1", EVIDENCE)
    await evidence.put("ev-1", EVIDENCE)
    assert await evidence.get("ev-1") == EVIDENCE


async def test_what_is_kept_is_listed_in_order(evidence: EvidenceStore) -> None:
    assert await evidence.ids() == ()
    for evidence_id in ("ev-2", "ev-1"):
        await evidence.put(evidence_id, EVIDENCE)
    assert await evidence.ids() == ("ev-1", "ev-2")


async def test_a_store_that_does_not_answer_says_so() -> None:
    clients = make_clients("redis://127.0.0.1:1/0")
    with pytest.raises(RegistryUnavailable):
        await RedisEvidenceStore(clients.commands).put("ev-1", EVIDENCE)
    await clients.aclose()
