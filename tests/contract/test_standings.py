"""What every store of standings promises."""

from dataclasses import replace

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


UNTIL_REINSTATED = Standing(N2, is_evicted=False, reason="operator", since_s=3.0)
EVICTED_TOO = Standing(N2, is_evicted=True, reason="lied", since_s=9.0, evidence_id="e2")
BY_STRENGTH = (QUARANTINED, replace(QUARANTINED, until_s=62.5), UNTIL_REINSTATED, EVICTED_TOO)
PAIRS = [(BY_STRENGTH[low], BY_STRENGTH[high]) for low in range(4) for high in range(low + 1, 4)]


@pytest.mark.parametrize(("weak", "strong"), PAIRS)
async def test_the_stronger_standing_of_a_node_is_kept_whoever_writes_last(
    weak: Standing, strong: Standing, standings: Standings
) -> None:
    for first, second in ((weak, strong), (strong, weak)):
        await standings.put(first)
        await standings.put(second)
        assert await standings.all() == (strong,)
        await standings.remove(strong)


@pytest.mark.parametrize(("weak", "strong"), PAIRS)
async def test_who_ends_a_standing_ends_no_stronger_one_that_it_had_not_heard_of(
    weak: Standing, strong: Standing, standings: Standings
) -> None:
    await standings.put(strong)
    await standings.remove(weak)
    assert await standings.all() == (strong,)
    await standings.remove(strong)
    await standings.put(weak)
    await standings.remove(strong)
    assert await standings.all() == ()


async def test_of_two_convictions_the_first_evidence_stands(standings: Standings) -> None:
    await standings.put(EVICTED_TOO)
    await standings.put(replace(EVICTED_TOO, evidence_id="e3"))
    assert await standings.all() == (EVICTED_TOO,)


async def test_a_standing_can_be_removed_twice(standings: Standings) -> None:
    await standings.put(EVICTED)
    await standings.remove(EVICTED)
    await standings.remove(EVICTED)
    assert await standings.all() == ()


async def test_drained_nodes_are_kept_beside_their_standing(standings: Standings) -> None:
    await standings.put(EVICTED)
    for _ in range(2):
        await standings.set_drained(N1, is_drained=True)
        await standings.set_drained(N2, is_drained=True)
    assert await standings.drained() == {N1, N2}
    for _ in range(2):
        await standings.set_drained(N1, is_drained=False)
    assert await standings.drained() == {N2}
    assert await standings.all() == (EVICTED,)


async def test_a_store_that_does_not_answer_says_so() -> None:
    clients = make_clients("redis://127.0.0.1:1/0")
    with pytest.raises(RegistryUnavailable):
        await RedisStandings(clients.commands).put(EVICTED)
    await clients.aclose()
