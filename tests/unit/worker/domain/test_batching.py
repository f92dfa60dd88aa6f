import numpy as np

from services.worker.domain.batching import DecodeCall, Feeder, Intake, PrefillCall, Turns
from services.worker.domain.seat import Feed, FlowKey, Seat
from shared.domain.numerics import TILE_ROWS
from tests.fakes.seats import RING, feed_of, seat_of

ROW = np.zeros(4, np.float32)
CHUNK = np.zeros((3, 4), np.float32)


def fed(feeder: Feeder, feed: Feed, *, name: str = "task", ring: FlowKey = RING, max_batches: int = 1) -> Seat:
    seat = seat_of(name, ring=ring, feed=feed)
    feeder.add(seat, feed, num_stages=3, max_batches=max_batches)
    return seat


def decoding(num_prefix: int = 2) -> Feed:
    """A feed whose prefix has passed and whose next token is known."""
    feed = feed_of(num_prefix)
    feed.started = num_prefix
    assert feed.take_answer(num_prefix, 50)
    return feed


def test_rows_that_wait_at_a_later_stage_are_merged_into_one_call() -> None:
    intake = Intake()
    seats = [seat_of(f"t{number}", stage=1) for number in range(3)]
    for number, seat in enumerate(seats):
        intake.add_row(seat, number, ROW)
    call = intake.take_decode()
    assert call is not None
    assert call.seats == tuple(seats)
    assert call.positions == (0, 1, 2)
    assert intake.take_decode() is None


def test_decode_and_prefill_take_turns_at_a_later_stage() -> None:
    intake, kinds = Intake(), []
    turns = Turns(intake)
    for number in range(3):
        intake.add_chunk(seat_of(f"p{number}", stage=1), 0, CHUNK, final=True)
    for number in range(3):
        intake.add_row(seat_of(f"d{number}", stage=1), 5, ROW)
        kinds.append(type(turns.next_call()))
        kinds.append(type(turns.next_call()))
    assert kinds == [DecodeCall, PrefillCall] * 3
    assert turns.next_call() is None


def test_what_waits_for_a_freed_seat_is_dropped() -> None:
    intake = Intake()
    seat = seat_of(stage=1)
    intake.add_chunk(seat, 0, CHUNK, final=False)
    intake.add_row(seat, 3, ROW)
    intake.forget(seat)
    assert intake.num_waiting == 0


def test_a_prompt_is_cut_into_chunks_and_only_the_last_is_final() -> None:
    feeder = Feeder()
    seat = fed(feeder, feed_of(TILE_ROWS + 6))
    first, second = feeder.take_prefill(), feeder.take_prefill()
    assert first is not None
    assert second is not None
    assert (first.first, first.num_rows, first.final) == (0, TILE_ROWS, False)
    assert (second.first, second.num_rows, second.final) == (TILE_ROWS, 6, True)
    assert list(second.x) == list(range(100 + TILE_ROWS, 106 + TILE_ROWS))
    assert feeder.take_prefill() is None
    assert seat.accepted == TILE_ROWS + 6


def test_a_session_that_was_not_started_waits() -> None:
    feeder = Feeder()
    fed(feeder, feed_of(10, running=False))
    assert feeder.take_prefill() is None
    assert feeder.take_decode() is None


def test_prompts_take_turns_so_that_a_long_one_does_not_hold_up_a_short_one() -> None:
    feeder = Feeder()
    long, short = fed(feeder, feed_of(1_000), name="long"), fed(feeder, feed_of(10), name="short")
    taken = [feeder.take_prefill() for _ in range(3)]
    assert [call.seat for call in taken if call is not None] == [long, short, long]


def test_a_ring_takes_no_more_chunks_than_its_credit() -> None:
    feeder = Feeder()
    seat = fed(feeder, feed_of(10_000))
    while feeder.take_prefill() is not None:
        pass
    flow = feeder.flow(RING)
    assert flow is not None
    assert flow.outstanding_chunks == 5
    feeder.passed(seat, TILE_ROWS)
    assert feeder.take_prefill() is not None
    assert feeder.take_prefill() is None


def test_with_one_batch_in_flight_all_ready_sequences_go_together() -> None:
    feeder = Feeder()
    seats = [fed(feeder, decoding(), name=f"t{number}") for number in range(4)]
    call = feeder.take_decode()
    assert call is not None
    assert call.seats == tuple(seats)
    assert list(call.x) == [50] * 4
    assert feeder.take_decode() is None


def test_with_several_batches_in_flight_the_sequences_are_shared_out_and_nobody_is_left_out() -> None:
    feeder = Feeder()
    seats = [fed(feeder, decoding(), name=f"t{number}", max_batches=3) for number in range(7)]
    calls = [feeder.take_decode() for _ in range(3)]
    assert [len(call.seats) for call in calls if call is not None] == [3, 3, 1]
    assert {seat for call in calls if call is not None for seat in call.seats} == set(seats)
    assert feeder.take_decode() is None


def test_sequences_of_two_rings_share_a_call_and_each_ring_keeps_its_own_limit() -> None:
    feeder = Feeder()
    other = FlowKey("other plan", 0)
    first, second = fed(feeder, decoding(), name="a"), fed(feeder, decoding(), name="b", ring=other)
    call = feeder.take_decode()
    assert call is not None
    assert call.seats == (first, second)
    assert first.feed is not None
    first.feed.take_answer(3, 51)
    feeder.passed(first, 3)
    call = feeder.take_decode()
    assert call is not None
    assert call.seats == (first,)


def test_a_ring_without_seats_is_forgotten() -> None:
    feeder = Feeder()
    seat = fed(feeder, feed_of(10))
    feeder.take_prefill()
    feeder.forget(seat)
    assert feeder.flow(RING) is None
    assert feeder.take_prefill() is None


def small(name: str, row_class: int, feed: Feed | None = None) -> Seat:
    seat = seat_of(name, stage=0 if feed else 1, feed=feed)
    seat.row_class = row_class
    return seat


def test_rows_are_merged_as_far_as_every_row_class_in_the_call_allows() -> None:
    intake = Intake()
    for number, row_class in enumerate((0, 3, 3, 0, 1, 2)):
        intake.add_row(small(f"t{number}", row_class), number, ROW)
    calls = []
    while call := intake.take_decode():
        calls.append(call.positions)
    assert calls == [(0, 1, 2), (3,), (4,), (5,)]


def test_a_batch_larger_than_the_row_class_goes_in_several_calls_of_one_batch() -> None:
    feeder = Feeder()
    for number in range(3):
        feed = decoding()
        feeder.add(small(f"t{number}", 2, feed), feed, num_stages=3, max_batches=1)
    calls = [feeder.take_decode(), feeder.take_decode()]
    assert [len(call.seats) for call in calls if call] == [2, 1]
    assert feeder.take_decode() is None
    flow = feeder.flow(RING)
    assert flow is not None
    assert (flow.open_batches, flow.outstanding_rows) == (1, 3)


def test_a_row_whose_seat_is_freed_before_its_call_is_dropped() -> None:
    feeder, seats = Feeder(), []
    for number in range(2):
        feed = decoding()
        seats.append(small(f"t{number}", 1, feed))
        feeder.add(seats[-1], feed, num_stages=3, max_batches=1)
    assert feeder.take_decode() is not None
    feeder.forget(seats[1])
    assert feeder.take_decode() is None


def test_after_a_resume_what_was_generated_before_is_run_in_small_calls() -> None:
    feeder, feed = Feeder(), feed_of(8)  # a prompt of three ids, and five that were committed
    feeder.add(small("task", 2, feed), feed, num_stages=3, max_batches=1)
    calls = [feeder.take_prefill() for _ in range(4)]
    assert [(call.first, call.num_rows, call.final) for call in calls if call] == [
        (0, 3, False),
        (3, 2, False),
        (5, 2, False),
        (7, 1, True),
    ]
