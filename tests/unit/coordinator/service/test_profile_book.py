"""What several replicas know of the nodes is one thing: no word is lost that a later one did not take back."""

import asyncio
from dataclasses import replace

from services.coordinator.domain.profile import NodeProfile
from services.coordinator.service.profile_book import ProfileBook
from shared.domain.measured import Drift, Pace
from tests.fakes.identities import N1
from tests.fakes.profiles import MemoryProfiles

ONCE = NodeProfile(N1, trials=(Pace(1e-10, 3e-11),))
TWICE = replace(ONCE, trials=ONCE.trials * 2)


class SlowProfiles(MemoryProfiles):
    """Lets others run while it keeps something."""

    def __init__(self) -> None:
        super().__init__()
        self.is_putting, self.may_end = asyncio.Event(), asyncio.Event()

    async def put(self, profile: NodeProfile, *, after: int) -> int | None:
        self.is_putting.set()
        await self.may_end.wait()
        return await super().put(profile, after=after)


async def test_what_is_put_while_something_older_is_saved_is_saved_next() -> None:
    store = SlowProfiles()
    book = ProfileBook(store)
    book.put([ONCE])
    saving = asyncio.create_task(book.save())
    await store.is_putting.wait()
    book.put([TWICE])
    store.may_end.set()
    assert await saving
    assert await book.refresh() == []
    assert book.of(N1) == TWICE
    assert await book.save()
    assert [profile for _, profile in await store.changes(0)] == [TWICE]


async def test_of_two_replicas_that_change_a_profile_the_slower_one_hears_of_it() -> None:
    store = MemoryProfiles()
    one, other = ProfileBook(store), ProfileBook(store)
    one.put([TWICE])
    other.put([ONCE])
    assert await one.save()
    assert not await other.save()
    assert await other.refresh() == [N1]
    assert other.of(N1) == TWICE
    assert await other.save()
    assert await one.refresh() == []


async def test_drift_that_would_change_no_level_is_known_here_alone() -> None:
    store = MemoryProfiles()
    book = ProfileBook(store)
    book.put([ONCE])
    await book.save()
    drifted = replace(ONCE, by_now=Drift(1.2, 1.2))
    book.put([drifted])
    await book.save()
    assert await store.changes(0) == ((1, ONCE),)
    assert await book.refresh() == []
    assert book.of(N1) == drifted
