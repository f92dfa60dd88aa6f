from collections.abc import AsyncIterator

import pytest

from services.worker.domain.seat import Seat
from services.worker.service.drafts import MAX_RECORDS_PER_MESSAGE, MIN_INTERVAL_S, RETRY_S, DraftSender
from shared.contracts.messages import DraftTokens
from shared.domain.errors import PeerUnavailable, StaleEpoch
from shared.domain.task import TokenRecord
from shared.runtime.tasks import BackgroundTasks
from tests.fakes.clock import FakeClock
from tests.fakes.seats import seat_of, tail_of
from tests.fakes.worker_parts import RecordingCoordinator


class Bench:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.tasks = BackgroundTasks(self.clock)
        self.coordinator = RecordingCoordinator()
        self.sender = DraftSender(coordinator=self.coordinator, tasks=self.tasks, clock=self.clock)
        self.tasks.loop("drafts", self.sender.send)
        self._next = dict[Seat, int]()

    def seat(self, name: str) -> Seat:
        seat = seat_of(name, stage=2, tail=tail_of((1, 2, 3), tokens_left=100))
        self._next[seat] = 3
        return seat

    def draft(self, seat: Seat, count: int = 1) -> None:
        for _ in range(count):
            position = self._next[seat]
            self._next[seat] += 1
            self.sender.add(seat, position, TokenRecord(position, 1.0, 0, 0.5))

    def told(self) -> list[list[tuple[str, int, int]]]:
        """Per message: task, first position and number of records of each draft."""
        return [
            [(draft.task_id, draft.first_position, len(draft.records)) for draft in report.drafts]
            for report in self.coordinator.told
            if isinstance(report, DraftTokens)
        ]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.tasks.stop(1.0)


async def test_the_first_token_of_a_sequence_goes_at_once(bench: Bench) -> None:
    bench.draft(bench.seat("a"))
    await bench.clock.settle()
    assert bench.told() == [[("a", 3, 1)]]
    bench.draft(bench.seat("b"))
    await bench.clock.settle()
    assert bench.told()[1:] == [[("b", 3, 1)]]


async def test_later_tokens_of_all_sequences_share_a_message(bench: Bench) -> None:
    first, second = bench.seat("a"), bench.seat("b")
    bench.draft(first)
    bench.draft(second)
    await bench.clock.settle()
    bench.draft(first, 2)
    bench.draft(second, 3)
    await bench.clock.advance(MIN_INTERVAL_S / 2)
    assert len(bench.told()) == 1
    await bench.clock.advance(MIN_INTERVAL_S)
    assert bench.told()[1:] == [[("a", 4, 2), ("b", 4, 3)]]


async def test_the_last_token_of_a_sequence_goes_at_once(bench: Bench) -> None:
    seat = bench.seat("a")
    bench.draft(seat)
    await bench.clock.settle()
    assert seat.tail is not None
    seat.tail.ended = True
    bench.draft(seat)
    await bench.clock.settle()
    assert bench.told() == [[("a", 3, 1)], [("a", 4, 1)]]


async def test_one_message_is_under_way_at_a_time(bench: Bench) -> None:
    seat = bench.seat("a")
    bench.coordinator.gate.clear()
    bench.draft(seat)
    await bench.clock.settle()
    bench.draft(seat, 5)
    bench.draft(bench.seat("b"))
    await bench.clock.advance(1.0)
    assert bench.told() == []
    bench.coordinator.gate.set()
    await bench.clock.advance(MIN_INTERVAL_S)
    assert bench.told() == [[("a", 3, 1)], [("a", 4, 5), ("b", 3, 1)]]


async def test_a_coordinator_that_was_away_gets_everything_in_order(bench: Bench) -> None:
    seat = bench.seat("a")
    bench.coordinator.errors += [PeerUnavailable("away"), PeerUnavailable("away")]
    bench.draft(seat)
    await bench.clock.settle()
    bench.draft(seat, 2)
    await bench.clock.advance(3 * RETRY_S)
    assert bench.told() == [[("a", 3, 3)]]


async def test_drafts_of_a_stale_session_are_dropped(bench: Bench) -> None:
    bench.coordinator.errors += [StaleEpoch("over")]
    bench.draft(bench.seat("a"))
    await bench.clock.advance(1.0)
    assert bench.told() == []
    assert bench.sender.num_waiting == 0


async def test_drafts_of_a_freed_seat_are_not_sent(bench: Bench) -> None:
    seat = bench.seat("a")
    seat.live = False
    bench.draft(seat)
    await bench.clock.settle()
    assert bench.told() == []


async def test_what_gathered_in_a_long_outage_goes_in_several_messages(bench: Bench) -> None:
    for name in "abc":
        bench.draft(bench.seat(name), 1_000)
    for _ in range(3):
        await bench.clock.advance(MIN_INTERVAL_S)
    messages = bench.told()
    assert max(sum(count for _, _, count in message) for message in messages) <= MAX_RECORDS_PER_MESSAGE
    for name in "abc":
        parts = [(first, count) for message in messages for task, first, count in message if task == name]
        ends = [first + count for first, count in parts]
        assert [first for first, _ in parts] == [3, *ends[:-1]]
        assert ends[-1] == 1_003


async def test_tokens_that_are_hurried_go_at_once(bench: Bench) -> None:
    seat = bench.seat("a")
    bench.draft(seat)
    await bench.clock.settle()
    bench.draft(seat, 2)
    bench.sender.hurry()
    await bench.clock.settle()
    assert bench.told() == [[("a", 3, 1)], [("a", 4, 2)]]
