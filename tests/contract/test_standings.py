"""What every store of standings promises."""

import pytest

from services.coordinator.domain.standing import Standing
from services.coordinator.ports import Standings
from services.coordinator.stores.standings import RedisStandings
from shared.domain.errors import RegistryUnavailable
from shared.registry.connection import RedisClients, make_clients
from tests.fakes.identities import N1, N2
from tests.fakes.standings import MemoryStandings

EVICTED = Standing(N1, is_evicted=True, reason="é: lied", since_s=1.5, evidence_id="e1", address="http://a:1")
QUARANTINED = Standing(N2, is_evicted=False, reason="odd", since_s=2.0, until_s=62.0, times=3)


@pytest.fixture
def standings(clients: RedisClients | None) -> Standings:
    return MemoryStandings() if clients is None else RedisStandings(clients.commands)


async def test_what_is_kept_comes_back_as_it_was(standings: Standings) -> None:
    assert await standings.all() == ()
    await standings.put(EVICTED)
    await standings.put(QUARANTINED)
    assert sorted(await standings.all(), key=lambda standing: standing.node_id) == [EVICTED, QUARANTINED]


async def test_a_node_has_one_standing_the_latest(standings: Standings) -> None:
    later = Standing(N2, is_evicted=True, reason="lied", since_s=9.0, evidence_id="e2")
    await standings.put(QUARANTINED)
    await standings.put(later)
    assert await standings.all() == (later,)


async def test_a_standing_can_be_removed_twice(standings: Standings) -> None:
    await standings.put(EVICTED)
    await standings.remove(N1)
    await standings.remove(N1)
    assert await standings.all() == ()


async def test_a_store_that_does_not_answer_says_so() -> None:
    clients = make_clients("redis://127.0.0.1:1/0")
    with pytest.raises(RegistryUnavailable):
        await RedisStandings(clients.commands).put(EVICTED)
    await clients.aclose()
