import pytest

from shared.domain.errors import InvalidTransition
from shared.domain.task_state import CANCELLABLE, TERMINAL, TRANSITIONS, TaskEvent, TaskState, next_state

HAPPY_PATH = [
    (TaskEvent.ENQUEUE, TaskState.QUEUED),
    (TaskEvent.START_PARTITIONING, TaskState.PARTITIONING),
    (TaskEvent.PARTITION_COMPLETE, TaskState.COORDINATING),
    (TaskEvent.COORDINATION_COMPLETE, TaskState.COMPUTING),
    (TaskEvent.COMPUTATION_COMPLETE, TaskState.AGGREGATING),
    (TaskEvent.AGGREGATION_COMPLETE, TaskState.COMMITTING),
    (TaskEvent.COMMIT_COMPLETE, TaskState.COMPLETED),
]


def test_a_task_that_meets_no_trouble_passes_every_state_in_order() -> None:
    state = TaskState.SUBMITTED
    for event, expected in HAPPY_PATH:
        state = next_state(state, event)
        assert state is expected


@pytest.mark.parametrize("state", sorted(TERMINAL))
@pytest.mark.parametrize("event", list(TaskEvent))
def test_a_terminal_state_takes_no_event(state: TaskState, event: TaskEvent) -> None:
    with pytest.raises(InvalidTransition, match=f"a {state} task cannot take the event {event}"):
        next_state(state, event)


@pytest.mark.parametrize("state", [state for state in TaskState if state not in TERMINAL])
def test_every_task_that_has_not_ended_can_fail(state: TaskState) -> None:
    assert next_state(state, TaskEvent.FAIL) is TaskState.FAILED


def test_a_task_can_be_cancelled_until_it_commits() -> None:
    cancellable = {state for state, event in TRANSITIONS if event is TaskEvent.CANCEL}
    assert cancellable == CANCELLABLE == set(TaskState) - TERMINAL - {TaskState.COMMITTING}


def test_only_a_task_that_runs_can_be_reassigned_and_only_one_before_can_be_requeued() -> None:
    assert {state for state, event in TRANSITIONS if event is TaskEvent.REASSIGN} == {
        TaskState.COMPUTING,
        TaskState.AGGREGATING,
    }
    assert {state for state, event in TRANSITIONS if event is TaskEvent.REQUEUE} == {
        TaskState.PARTITIONING,
        TaskState.COORDINATING,
    }
