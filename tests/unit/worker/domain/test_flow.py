"""Everything that stage 0 starts is accounted for exactly once, and nothing waits for what cannot come."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.domain.batching import DecodeCall, Feeder, PrefillCall, Turns
from services.worker.domain.flow import Flow, chunk_credit
from services.worker.domain.seat import Feed, Seat
from tests.fakes.seats import RING, feed_of, seat_of

NUM_STAGES = 3
TOKENS_PER_SESSION = 6


def test_a_batch_is_open_until_its_last_row_is_back() -> None:
    flow = Flow[str](max_batches=1, max_chunks=5)
    flow.start_batch(["a", "b"])
    flow.passed("a", 7)
    assert not flow.may_start_batch
    flow.passed("b", 9)
    assert flow.may_start_batch
    assert flow.outstanding_rows == 0


def test_a_freed_seat_is_not_waited_for() -> None:
    flow = Flow[str](max_batches=1, max_chunks=2)
    flow.start_batch(["a", "b"])
    flow.passed("a", 7)
    flow.start_chunk("b", 64)
    flow.start_chunk("b", 128)
    flow.forget("b")
    assert flow.may_start_batch
    assert flow.may_start_chunk
    assert flow.outstanding_chunks == 0


def test_an_answer_that_comes_twice_counts_once() -> None:
    flow = Flow[str](max_batches=2, max_chunks=2)
    flow.start_batch(["a"])
    flow.start_batch(["b"])
    flow.passed("a", 7)
    flow.passed("a", 7)
    assert flow.open_batches == 1


def test_one_answer_may_stand_for_several_chunks() -> None:
    flow = Flow[str](max_batches=1, max_chunks=3)
    for end in (64, 128, 130):
        flow.start_chunk("a", end)
    assert not flow.may_start_chunk
    flow.passed("a", 128)
    assert flow.outstanding_chunks == 1


@pytest.mark.parametrize(("num_decoding", "max_batches", "share"), [(16, 1, 16), (16, 3, 6), (2, 3, 1), (1, 3, 1)])
def test_batches_share_the_sequences_evenly(num_decoding: int, max_batches: int, share: int) -> None:
    assert Flow[str](max_batches=max_batches, max_chunks=1).batch_share(num_decoding) == share


@dataclass
class Ring:
    """What is under way beyond stage 0, split and merged as chance has it; each seat's rows stay in order."""

    chance: random.Random
    max_batches: int
    feeder: Feeder = field(default_factory=Feeder)
    seats: list[tuple[Seat, Feed]] = field(default_factory=list)
    under_way: dict[Seat, list[tuple[int, int]]] = field(default_factory=dict)
    """Per seat the (end, rows) of what has not come back, oldest first."""
    late: list[tuple[Seat, int]] = field(default_factory=list)
    """Answers for seats that were freed before they came."""
    finished: set[Seat] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.turns = Turns(self.feeder)

    def add(self, name: int) -> None:
        seat, feed = seat_of(f"task-{name}", slot=name), feed_of(self.chance.randint(1, 300))
        seat.feed = feed
        self.feeder.add(seat, feed, num_stages=NUM_STAGES, max_batches=self.max_batches)
        self.seats.append((seat, feed))

    def start(self) -> bool:
        call = self.turns.next_call()
        match call:
            case None:
                return False
            case PrefillCall():
                self._note(call.seat, call.first + call.num_rows, call.num_rows)
            case DecodeCall():
                assert len(set(call.seats)) == len(call.seats)
                for seat, position in zip(call.seats, call.positions, strict=True):
                    self._note(seat, position + 1, 1)
        return True

    def answer(self) -> bool:
        """Some seat's oldest rows come back, sometimes twice, sometimes several chunks in one answer; and sometimes
        rows of a seat that was freed, which change nothing."""
        flow = self.feeder.flow(RING)
        if self.late and flow is not None:
            flow.passed(*self.late.pop())
        waiting = [seat for seat, ends in self.under_way.items() if ends]
        if not waiting:
            return False
        seat = self.chance.choice(waiting)
        ends = self.under_way[seat]
        end, _ = ends.pop(0)
        if ends and ends[0][0] < self._feed(seat).num_prefix and self.chance.random() < 0.3:
            end, _ = ends.pop(0)
        for _ in range(self.chance.randint(1, 2)):
            self._come_back(seat, end)
        return True

    def stop(self) -> None:
        if not self.seats:
            return
        seat, _ = self.seats.pop(self.chance.randrange(len(self.seats)))
        seat.live = False
        self.feeder.forget(seat)
        self.late += [(seat, end) for end, _ in self.under_way.pop(seat, [])]

    def check(self) -> None:
        flow = self.feeder.flow(RING)
        if flow is None:
            assert not self.seats
            return
        outstanding = [
            end >= self._feed(seat).num_prefix + 1 for seat, ends in self.under_way.items() for end, _ in ends
        ]
        assert flow.outstanding_rows == sum(outstanding)
        assert flow.outstanding_chunks == len(outstanding) - sum(outstanding)
        assert flow.open_batches <= self.max_batches
        assert flow.outstanding_chunks <= chunk_credit(NUM_STAGES)

    def _note(self, seat: Seat, end: int, rows: int) -> None:
        assert seat.live
        before = self.under_way.setdefault(seat, [])
        assert end - rows == (before[-1][0] if before else self._feed(seat).acknowledged)
        before.append((end, rows))

    def _come_back(self, seat: Seat, end: int) -> None:
        feed = self._feed(seat)
        is_over = end >= feed.num_prefix + TOKENS_PER_SESSION
        token_id = None if end < feed.num_prefix or is_over else 7
        if feed.take_answer(end, token_id):
            self.feeder.passed(seat, end)
        if is_over:
            self.finished.add(seat)

    def _feed(self, seat: Seat) -> Feed:
        assert seat.feed is not None
        return seat.feed


@given(
    seed=st.integers(0, 2**32),
    max_batches=st.integers(1, 4),
    num_sessions=st.integers(1, 8),
    acts=st.lists(st.sampled_from(["start", "start", "answer", "answer", "stop", "add"]), max_size=120),
)
def test_no_row_is_lost_and_no_ring_stands_still(
    seed: int, max_batches: int, num_sessions: int, acts: list[str]
) -> None:
    ring = Ring(random.Random(seed), max_batches)
    for name in range(num_sessions):
        ring.add(name)
    for number, act in enumerate(acts):
        if act == "start":
            ring.start()
        elif act == "answer":
            ring.answer()
        elif act == "stop":
            ring.stop()
        else:
            ring.add(num_sessions + number)
        ring.check()
    while ring.start() or ring.answer():
        ring.check()
    assert ring.finished >= {seat for seat, _ in ring.seats}
    assert all(not ends for ends in ring.under_way.values())
