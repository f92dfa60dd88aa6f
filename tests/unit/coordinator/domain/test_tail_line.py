from dataclasses import replace

from services.coordinator.domain.session import Subject
from services.coordinator.domain.tail_line import MAX_REMEMBERED, MAX_WAITING, WAIT_S, Finished, TailLine
from shared.domain.ids import Attempt, Epoch, NodeId, TaskId
from tests.fakes.partitioner import TINY
from tests.fakes.tasks import make_task


def finished(name: str, *nodes: str, at_s: float = 0.0) -> Finished:
    task = replace(make_task(), task_id=TaskId(name))
    subject = Subject(task, TINY, None, Attempt(1), deadline_at_s=9.0, created_at_s=0.0)
    return Finished(subject, Epoch(1), frozenset(map(NodeId, nodes)), at_s)


def names(line: TailLine) -> list[str]:
    found: list[str] = []
    while (waiting := line.next()) is not None:
        found.append(waiting.finished.subject.task.task_id)
    return found


def test_those_drawn_come_in_order_and_the_others_not_at_all() -> None:
    line = TailLine(keep_s=10.0)
    for number in range(4):
        assert line.add(finished(f"t{number}"), is_drawn=number % 2 == 0)
    assert names(line) == ["t0", "t2"]


def test_each_has_a_time_until_which_it_may_wait() -> None:
    line = TailLine(keep_s=10.0)
    line.add(finished("t", at_s=5.0), is_drawn=True)
    waiting = line.next()
    assert waiting is not None
    assert waiting.until_s == 5.0 + WAIT_S


def test_a_full_line_takes_no_more() -> None:
    line = TailLine(keep_s=10.0)
    assert all(line.add(finished(f"t{number}"), is_drawn=True) for number in range(MAX_WAITING))
    assert not line.add(finished("one more"), is_drawn=True)
    assert len(names(line)) == MAX_WAITING


def test_answers_of_an_evicted_node_go_first_those_passed_over_too() -> None:
    line = TailLine(keep_s=10.0)
    line.add(finished("other", "b"), is_drawn=True)
    line.add(finished("drawn", "a", "b"), is_drawn=True)
    line.add(finished("too old", "a", at_s=0.0), is_drawn=False)
    line.add(finished("late", "a", at_s=5.0), is_drawn=False)
    line.add(finished("not its own", "b", at_s=5.0), is_drawn=False)
    fresh = line.evicted(NodeId("a"), now_s=12.0)
    assert [each.subject.task.task_id for each in fresh] == ["late"]
    assert names(line) == ["drawn", "late", "other"]
    assert list(line.evicted(NodeId("a"), now_s=12.0)) == []


def test_an_eviction_fills_the_line_no_further_than_it_goes() -> None:
    line = TailLine(keep_s=10.0)
    for number in range(MAX_REMEMBERED):
        line.add(finished(f"t{number}", "a"), is_drawn=False)
    assert len(line.evicted(NodeId("a"), now_s=1.0)) == MAX_WAITING
    assert len(names(line)) == MAX_WAITING


def test_only_so_many_answers_are_remembered() -> None:
    line = TailLine(keep_s=10.0)
    for number in range(MAX_REMEMBERED + 1):
        line.add(finished(f"t{number}", "a" if number == 0 else "b"), is_drawn=False)
    assert list(line.evicted(NodeId("a"), now_s=1.0)) == []
