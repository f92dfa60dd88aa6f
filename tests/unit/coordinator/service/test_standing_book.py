"""What is known of nodes and what is kept of them do not drift apart."""

import asyncio

from services.coordinator.domain.standing import Standing
from services.coordinator.service.standing_book import StandingBook
from tests.fakes.clock import FakeClock
from tests.fakes.identities import N1
from tests.fakes.standings import MemoryStandings


class SlowStandings(MemoryStandings):
    """Removes when `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def remove(self, standing: Standing) -> None:
        await self.gate.wait()
        await super().remove(standing)


async def test_guilt_found_while_a_quarantine_is_being_ended_stands() -> None:
    store, clock = SlowStandings(), FakeClock()
    book = StandingBook(store, clock)
    book.quarantine(N1, reason="odd", address="", until_reinstated=True)
    await book.save(N1)
    ending = asyncio.create_task(book.reinstate(N1))
    await clock.settle()
    assert book.evict(N1, evidence_id="e1", reason="lied", address="")
    saving = asyncio.create_task(book.save(N1))
    store.gate.set()
    assert not (await ending).is_evicted
    await saving
    known = book.of(N1)
    assert known is not None
    assert known.is_evicted
    assert await store.all() == (known,)


async def test_what_an_earlier_run_kept_is_read_once_and_takes_nothing_back() -> None:
    store, clock = MemoryStandings(), FakeClock()
    earlier = StandingBook(store, clock)
    earlier.quarantine(N1, reason="odd", address="", until_reinstated=True)
    await earlier.save(N1)
    book = StandingBook(store, clock)
    assert book.evict(N1, evidence_id="e1", reason="lied", address="")
    await book.recall()
    assert [standing.evidence_id for standing in book.evicted()] == ["e1"]
