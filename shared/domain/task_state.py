"""The task state machine: one table, used by every writer and handed to the registry's scripts."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from shared.domain.errors import InvalidTransition


class TaskState(StrEnum):
    SUBMITTED = "submitted"
    QUEUED = "queued"
    PARTITIONING = "partitioning"
    COORDINATING = "coordinating"
    COMPUTING = "computing"
    AGGREGATING = "aggregating"
    COMMITTING = "committing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskEvent(StrEnum):
    ENQUEUE = "enqueue"
    START_PARTITIONING = "start_partitioning"
    PARTITION_COMPLETE = "partition_complete"
    COORDINATION_COMPLETE = "coordination_complete"
    COMPUTATION_COMPLETE = "computation_complete"
    AGGREGATION_COMPLETE = "aggregation_complete"
    COMMIT_COMPLETE = "commit_complete"
    REQUEUE = "requeue"
    REASSIGN = "reassign"
    FAIL = "fail"
    CANCEL = "cancel"


_S, _E = TaskState, TaskEvent

TERMINAL = frozenset({_S.COMPLETED, _S.FAILED, _S.CANCELLED})
CANCELLABLE = frozenset({_S.SUBMITTED, _S.QUEUED, _S.PARTITIONING, _S.COORDINATING, _S.COMPUTING, _S.AGGREGATING})

TRANSITIONS: Mapping[tuple[TaskState, TaskEvent], TaskState] = MappingProxyType(
    {
        (_S.SUBMITTED, _E.ENQUEUE): _S.QUEUED,
        (_S.QUEUED, _E.START_PARTITIONING): _S.PARTITIONING,
        (_S.PARTITIONING, _E.PARTITION_COMPLETE): _S.COORDINATING,
        (_S.COORDINATING, _E.COORDINATION_COMPLETE): _S.COMPUTING,
        (_S.COMPUTING, _E.COMPUTATION_COMPLETE): _S.AGGREGATING,
        (_S.AGGREGATING, _E.AGGREGATION_COMPLETE): _S.COMMITTING,
        (_S.COMMITTING, _E.COMMIT_COMPLETE): _S.COMPLETED,
        # No capacity, or the scheduler died.
        (_S.PARTITIONING, _E.REQUEUE): _S.QUEUED,
        (_S.COORDINATING, _E.REQUEUE): _S.QUEUED,
        # A node was lost.
        (_S.COMPUTING, _E.REASSIGN): _S.COORDINATING,
        (_S.AGGREGATING, _E.REASSIGN): _S.COORDINATING,
    }
    | {(state, _E.FAIL): _S.FAILED for state in TaskState if state not in TERMINAL}
    | {(state, _E.CANCEL): _S.CANCELLED for state in CANCELLABLE}
)


def next_state(state: TaskState, event: TaskEvent) -> TaskState:
    """The state that `event` leads to, or `InvalidTransition`."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise InvalidTransition(f"a {state} task cannot take the event {event}") from None
