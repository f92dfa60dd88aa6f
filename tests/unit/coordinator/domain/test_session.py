"""One session and the rules by which it changes."""

import pytest

from services.coordinator.domain.faults import FaultKind
from services.coordinator.domain.session import Session, Subject
from services.coordinator.domain.session_machine import SessionEvent
from shared.domain.errors import ContextLengthExceeded, ProtocolViolation, StaleEpoch
from shared.domain.ids import Attempt, Epoch, NodeId
from shared.domain.session import SessionPhase
from tests.fakes.partitioner import TINY, even_plan
from tests.fakes.tasks import make_task, make_tokens

FIRST, SECOND = Epoch(1), Epoch(2)
A, B = NodeId("a"), NodeId("b")


def seated(**changes: object) -> Session:
    """Drafting on a and b, with the three prompt tokens of every test task."""
    subject = Subject(make_task(**changes), TINY, None, Attempt(1), deadline_at_s=100.0, created_at_s=0.0)
    session = Session(subject, now_s=0.0, on_change=lambda: None, on_phase=lambda before, after: None)
    session.seat(even_plan([A, B]), FIRST, committed=(), context_tokens=64, now_s=0.0)
    for stage, node in enumerate((A, B)):
        session.seat_ready(node, FIRST, stage, now_s=0.0)
    session.move(SessionEvent.SEATS_READY)
    return session


def test_only_what_is_not_acknowledged_is_uncommitted() -> None:
    session = seated()
    session.draft(B, FIRST, 3, make_tokens(10, 11), now_s=1.0)
    session.committed(FIRST, 1)
    assert [record.token_id for record in session.uncommitted()] == [11]


def test_an_answer_that_has_ended_is_written_with_its_end() -> None:
    session = seated(max_tokens=2)
    session.draft(B, FIRST, 3, make_tokens(10, 11), now_s=1.0)
    assert session.ending is not None
    assert session.uncommitted() == ()


def test_a_fence_in_the_present_epoch_means_that_the_task_is_not_ours() -> None:
    session = seated()
    session.draft(B, FIRST, 3, make_tokens(10), now_s=1.0)
    session.committed(FIRST, None)
    assert session.cancelled
    assert session.uncommitted() == ()


def test_a_fence_seen_while_recovering_is_our_own_new_epoch() -> None:
    session = seated()
    session.lose(FaultKind.GONE, "lost", now_s=1.0)
    session.committed(FIRST, None)
    assert not session.cancelled


def test_a_late_answer_about_an_earlier_epoch_changes_nothing() -> None:
    session = seated()
    session.lose(FaultKind.GONE, "lost", now_s=1.0)
    session.seat(even_plan([A, B]), SECOND, committed=(), context_tokens=64, now_s=2.0)
    session.committed(FIRST, None)
    session.committed(FIRST, 5)
    assert (session.cancelled, session.num_committed) == (False, 0)


def test_drafts_that_were_not_committed_before_a_loss_are_drafted_anew() -> None:
    session = seated()
    session.draft(B, FIRST, 3, make_tokens(10, 11), now_s=1.0)
    session.lose(FaultKind.GONE, "lost", now_s=1.0)
    session.seat(even_plan([A, B]), SECOND, committed=make_tokens(10), context_tokens=64, now_s=2.0)
    assert [record.token_id for record in session.records] == [10]
    assert session.phase is SessionPhase.ASSIGNING


def test_one_epoch_is_lost_once() -> None:
    session = seated()
    session.lose(FaultKind.LINK, "first", now_s=1.0)
    session.lose(FaultKind.GONE, "second", now_s=1.5)
    assert [fault.reason for fault in session.faults] == ["first"]
    assert session.lost_at_s == 1.0


def test_a_loss_after_the_end_of_the_answer_is_none() -> None:
    session = seated(max_tokens=1)
    session.draft(B, FIRST, 3, make_tokens(10), now_s=1.0)
    session.lose(FaultKind.GONE, "lost", now_s=1.0)
    assert session.phase is SessionPhase.DRAFTING
    assert session.faults == []


def test_a_prefix_that_already_fills_smaller_nodes_ends_the_answer() -> None:
    session = seated(max_tokens=8)
    session.lose(FaultKind.GONE, "lost", now_s=1.0)
    session.seat(even_plan([A, B]), SECOND, committed=make_tokens(10, 11), context_tokens=5, now_s=2.0)
    assert session.ending is not None
    assert session.ending.num_tokens == 2


def test_nodes_without_room_for_the_prompt_are_refused() -> None:
    session = seated()
    with pytest.raises(ContextLengthExceeded):
        session.seat(even_plan([A, B]), SECOND, committed=(), context_tokens=3, now_s=2.0)


def test_nobody_speaks_for_a_session_that_recovers() -> None:
    session = seated()
    session.lose(FaultKind.GONE, "lost", now_s=1.0)
    with pytest.raises(StaleEpoch):
        session.draft(B, FIRST, 3, make_tokens(10), now_s=1.0)


def test_a_stage_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ProtocolViolation):
        seated().seat_ready(A, FIRST, 2, now_s=0.0)


@pytest.mark.parametrize(
    ("node", "epoch", "rows", "is_progress"),
    [(A, FIRST, 5, True), (A, FIRST, 0, False), (A, SECOND, 5, False), (B, FIRST, 5, False)],
)
def test_only_who_got_further_at_its_own_seat_shows_progress(
    node: NodeId, epoch: Epoch, rows: int, is_progress: bool
) -> None:
    session = seated()
    assert session.position(node, epoch, (0, 0), rows, now_s=3.0) is is_progress
    assert session.progress_at_s == (3.0 if is_progress else 0.0)


def test_progress_beyond_the_room_of_a_session_counts_no_more() -> None:
    session = seated()
    assert session.position(A, FIRST, (0, 0), 10_000, now_s=1.0)
    assert not session.position(A, FIRST, (0, 0), 10_001, now_s=2.0)
