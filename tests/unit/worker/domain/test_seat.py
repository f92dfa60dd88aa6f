import pytest

from services.worker.domain.seat import ReplayFeed
from shared.domain.errors import InvalidInput, ProtocolViolation
from shared.domain.task import TokenRecord
from tests.fakes.seats import feed_of, keeper_of, seat_of, tail_of


def record(token_id: int) -> TokenRecord:
    return TokenRecord(token_id, 1.0, 0, 0.5)


def test_rows_must_continue_the_sequence() -> None:
    seat = seat_of(stage=1)
    assert seat.accept(0, 3)
    with pytest.raises(ProtocolViolation, match="does not continue"):
        seat.accept(4, 1)
    assert seat.accept(3, 1)


def test_rows_that_come_twice_are_dropped() -> None:
    seat = seat_of(stage=1)
    assert seat.accept(0, 3)
    assert not seat.accept(0, 3)
    assert not seat.accept(2, 1)
    assert seat.accepted == 3


def test_rows_that_overlap_what_is_known_break_the_protocol() -> None:
    seat = seat_of(stage=1)
    seat.accept(0, 3)
    with pytest.raises(ProtocolViolation):
        seat.accept(1, 5)


def test_rows_beyond_the_session_break_the_protocol() -> None:
    seat = seat_of(stage=1, max_rows=4)
    seat.accept(0, 4)
    with pytest.raises(ProtocolViolation, match="session of 4"):
        seat.accept(4, 1)


def test_more_chunks_than_the_credit_break_the_protocol() -> None:
    seat = seat_of(stage=1, max_waiting=2)
    seat.accept(0, 1)
    seat.accept(1, 1)
    with pytest.raises(ProtocolViolation, match="under way"):
        seat.accept(2, 1)


def test_rows_of_earlier_epochs_may_come_as_fast_as_they_are_called_for() -> None:
    """Their sender is told to send them by the stage before it: it must not be blamed for how fast."""
    seat = seat_of(stage=1, max_waiting=2)
    seat.windows = keeper_of(stage=1, generated_ids=tuple(range(20)), first_window=2)
    first_row = seat.windows.schedule.first_row
    assert seat.accept(0, 3)
    for row in range(3, first_row):
        assert seat.accept(row, 1)
    with pytest.raises(ProtocolViolation, match="under way"):
        seat.accept(first_row, 1)


def test_a_row_that_comes_before_those_that_are_to_go_by_is_refused_at_once() -> None:
    """The next stage would refuse it, and with it this seat's node, which has done nothing."""
    seat = seat_of(stage=1)
    seat.start_row = seat.accepted = seat.computed = 80
    seat.replay_stages = 3
    assert seat.reached == 0
    with pytest.raises(ProtocolViolation, match="those from 0 on have not gone by"):
        seat.accept(80, 1)
    seat.recalled = 80
    assert (seat.accept(80, 1), seat.reached) == (True, 80)


def test_a_token_continues_the_sequence() -> None:
    feed = feed_of(2)
    feed.started = 2
    assert feed.take_answer(2, 9)
    assert feed.ids == [100, 101, 9]
    assert feed.decode_waits


def test_an_answer_for_a_part_of_the_prefix_brings_no_token() -> None:
    feed = feed_of(100)
    feed.started = 100
    assert feed.take_answer(64, None)
    assert not feed.ended
    with pytest.raises(ProtocolViolation, match="inside the prefix"):
        feed.take_answer(70, 5)


def test_an_answer_without_a_token_ends_the_sequence() -> None:
    feed = feed_of(2)
    feed.started = 2
    assert feed.take_answer(2, None)
    assert feed.ended
    assert not feed.decode_waits


def test_an_answer_that_comes_twice_changes_nothing() -> None:
    feed = feed_of(2)
    feed.started = 2
    assert feed.take_answer(2, 9)
    assert not feed.take_answer(2, 9)
    assert feed.ids == [100, 101, 9]


def test_an_answer_for_rows_never_started_breaks_the_protocol() -> None:
    feed = feed_of(2)
    feed.started = 2
    with pytest.raises(ProtocolViolation, match="rows started"):
        feed.take_answer(3, 9)


def test_only_the_last_row_of_the_prefix_and_later_ones_yield_tokens() -> None:
    tail = tail_of((1, 2, 3))
    assert [tail.is_due(position) for position in range(5)] == [False, False, True, True, True]


def test_an_end_token_ends_the_sequence_and_does_not_go_round_again() -> None:
    tail = tail_of((1,), end_ids=(9,))
    assert tail.take(record(5)) == 5
    assert tail.take(record(9)) is None
    assert tail.ended


def test_the_last_token_allowed_ends_the_sequence() -> None:
    tail = tail_of((1,), tokens_left=2)
    assert tail.take(record(5)) == 5
    assert tail.take(record(6)) is None
    assert tail.generated_ids == [5, 6]


def test_rows_too_far_ahead_of_the_commits_wait() -> None:
    feed = feed_of(2)
    feed.started = 2
    feed.row_limit = 2
    assert feed.take_answer(2, 9)
    assert not feed.decode_waits
    feed.row_limit = 3
    assert feed.decode_waits


def replay_of(committed: int, *, first_due: int) -> ReplayFeed:
    return ReplayFeed(list(range(committed)), committed, running=True, first_due=first_due)


def test_a_replay_runs_what_is_released_and_never_decodes() -> None:
    feed = replay_of(2, first_due=2)
    assert feed.prefill_waits
    feed.started = 2
    assert not feed.prefill_waits
    feed.release(2, (7, 8), max_rows=10)
    assert (feed.ids, feed.prefill_waits, feed.decode_waits) == ([0, 1, 7, 8], True, False)
    feed.started = 4
    assert feed.take_answer(4, None)
    assert not feed.ended
    feed.release(4, (9,), max_rows=10)
    assert feed.prefill_waits


def test_ids_may_be_released_twice_and_in_any_order() -> None:
    feed = replay_of(0, first_due=1)
    feed.release(4, (4, 5), max_rows=10)
    feed.release(2, (2, 3), max_rows=10)
    assert feed.ids == []
    feed.release(0, (0, 1), max_rows=10)
    feed.release(0, (0, 1), max_rows=10)
    assert (feed.ids, feed.num_prefix) == ([0, 1, 2, 3, 4, 5], 6)
    with pytest.raises(InvalidInput, match="session of 10"):
        feed.release(6, (6, 7, 8, 9, 10), max_rows=10)


def test_a_replay_takes_no_token_and_no_answer_for_rows_never_started() -> None:
    feed = replay_of(4, first_due=3)
    feed.started = 2
    with pytest.raises(ProtocolViolation, match="does not decode"):
        feed.take_answer(2, 9)
    with pytest.raises(ProtocolViolation, match="rows started"):
        feed.take_answer(3, None)
    assert feed.take_answer(2, None)
    assert not feed.take_answer(2, None)


def test_the_tokens_of_a_replay_do_not_go_round_and_end_nothing() -> None:
    tail = tail_of((1,), end_ids=(9,), tokens_left=1)
    tail.decodes = False
    assert tail.take(record(9)) is None
    assert tail.take(record(5)) is None
    assert (tail.generated_ids, tail.ended) == ([9, 5], False)


@pytest.mark.parametrize(("first", "num_rows"), [(0, 2), (0, 5), (3, 3)])
def test_a_sender_cannot_bring_about_other_calls_than_the_row_class_has(first: int, num_rows: int) -> None:
    """Else it could make an honest node sign other bits than its auditors."""
    seat = seat_of(stage=1)  # after a prompt of three rows
    seat.row_class = 2
    if first:
        assert seat.accept(0, 3)
    with pytest.raises(ProtocolViolation, match="in one call"):
        seat.accept(first, num_rows)
