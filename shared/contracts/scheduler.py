"""HTTP bodies of the scheduler. Reading tasks needs no call: readers use the registry."""

from typing import Annotated

from pydantic import Field

from shared.contracts.base import Contract
from shared.domain.ids import TaskId
from shared.domain.task import InferenceTask
from shared.domain.task_state import TaskState


class SubmitTask(Contract):
    """`POST /tasks`: answered only once the task is durable."""

    task: InferenceTask
    idempotency_key: str | None = None
    payload_hash: str = ""
    attached: bool = False
    """True: a client waits on an open connection; without renewal (`POST /attachments`) the task is cancelled."""
    require_capacity: bool = False
    """True: refuse with `no_capacity` when no plan is possible now, instead of queueing."""


class Submitted(Contract):
    task_id: TaskId
    state: TaskState
    created: bool
    """False: an idempotency key led to a task that was there already."""


class CancelReply(Contract):
    """`POST /tasks/{task_id}/cancel`. `accepted` is False when the task had ended (or was committing) already."""

    task_id: TaskId
    state: TaskState
    accepted: bool


class RenewAttachments(Contract):
    """`POST /attachments`: these tasks still have a client waiting."""

    task_ids: Annotated[tuple[TaskId, ...], Field(max_length=10_000)]


class QueueState(Contract):
    """`GET /state`."""

    depth: int
    oldest_age_s: float | None
    by_priority: dict[int, int]
    running: int
