"""What every store of profiles promises."""

from dataclasses import replace

import pytest

from services.coordinator.domain.profile import NodeProfile
from services.coordinator.ports import Profiles
from services.coordinator.stores.profiles import RedisProfiles
from shared.domain.measured import CallTime, Drift, Pace, PeerLink, StageTimes
from shared.registry.connection import RedisClients
from tests.fakes.identities import N1, N2
from tests.fakes.profiles import MemoryProfiles

CALLS = (CallTime(1, 0.001, 0.0009, 2), CallTime(4, 0.003, 0.0029, 1))
FIRST = NodeProfile(
    N1,
    trials=(Pace(1e-10, 3e-11), Pace(2e-10, 4e-11)),
    level=Pace(1e-10, 3e-11),
    links=(PeerLink(N2, 0.0004, 1e9),),
    stages=(StageTimes("root", 0, 3, CALLS, CALLS, CALLS),),
    by_now=Drift(1.25, 1.0, 1.5, 1.1, 0.001),
)
SECOND = NodeProfile(N2)


@pytest.fixture
def profiles(clients: RedisClients | None) -> Profiles:
    return MemoryProfiles() if clients is None else RedisProfiles(clients.commands)


async def test_what_is_kept_comes_back_as_it_was(profiles: Profiles) -> None:
    assert await profiles.changes(0) == ()
    first, second = await profiles.put(FIRST, after=0), await profiles.put(SECOND, after=0)
    assert await profiles.changes(0) == ((first, FIRST), (second, SECOND))


async def test_who_asks_again_hears_of_what_changed_since(profiles: Profiles) -> None:
    first, second = await profiles.put(FIRST, after=0), await profiles.put(SECOND, after=0)
    assert first is not None
    assert second is not None
    assert await profiles.changes(second) == ()
    changed = replace(FIRST, by_now=Drift(2.0, 1.0))
    third = await profiles.put(changed, after=first)
    assert await profiles.changes(second) == ((third, changed),)
    assert await profiles.changes(0) == ((second, SECOND), (third, changed))


async def test_who_does_not_know_of_the_last_change_changes_nothing(profiles: Profiles) -> None:
    first = await profiles.put(FIRST, after=0)
    assert await profiles.put(replace(FIRST, by_now=Drift(2.0, 1.0)), after=0) is None
    assert await profiles.changes(0) == ((first, FIRST),)


async def test_what_is_removed_is_kept_no_more_and_numbers_never_come_twice(profiles: Profiles) -> None:
    first = await profiles.put(FIRST, after=0)
    assert first is not None
    await profiles.remove(N1)
    await profiles.remove(N1)
    assert await profiles.changes(0) == ()
    again = await profiles.put(FIRST, after=0)
    assert again is not None
    assert again > first
