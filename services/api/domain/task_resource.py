"""A task as its client sees it (`/v1/tasks`). Pure: the registry's record in, JSON-like out."""

import datetime
from collections.abc import Sequence

from services.api.domain.stream_entries import committed, end_of
from shared.domain.bundle import committed_entries
from shared.domain.errors import error_from_code
from shared.domain.ids import TaskId
from shared.domain.task import Verification
from shared.domain.task_state import TERMINAL, TaskState
from shared.domain.window_entry import WindowEntry
from shared.registry.base import StreamEntry, TaskRecord

Json = dict[str, object]


def task_resource(
    record: TaskRecord, *, result: Json | None = None, entries: Sequence[WindowEntry] | None = None
) -> Json:
    """`result`: the answer of the task's route, when it is known and asked for. `entries`: what is kept of its windows;
    None: nobody looked, as for lists."""
    task = record.task
    windows, nodes = _proven(record, entries)
    return {
        "task_id": task.task_id,
        "object": "task",
        "status": record.state,
        "model": task.model_id,
        "kind": task.kind,
        "priority": task.priority,
        "attempt": record.attempt,
        "epoch": record.epoch,
        "created_at": _utc(record.created_s),
        "started_at": _utc(record.started_s),
        "finished_at": _utc(record.finished_s),
        "deadline_at": _utc(record.deadline_s),
        "progress": {
            "prompt_tokens": record.num_prompt_tokens,
            "drafted": record.num_committed,
            "committed": record.num_committed,
            "max_tokens": task.max_tokens,
            "windows": windows,
        },
        "verification": {
            "mode": task.verification,
            "max_byzantine": task.max_byzantine,
            "hold": task.hold,
            "verified": _is_verified(record),
            "windows": windows,
            "disputes": record.num_disputes,
            "nodes": nodes,
            "tail_audit": record.tail_audit,
            "revoked": record.is_revoked,
        },
        "result": result,
        "result_expires_at": _utc(record.expires_s),
        "error": task_error(record),
        "metadata": dict(task.metadata),
        "links": _links(task.task_id),
    }


def _proven(record: TaskRecord, entries: Sequence[WindowEntry] | None) -> tuple[int | None, list[str] | None]:
    """Windows committed by agreement, and the nodes that signed them."""
    if entries is None or record.task.verification is Verification.NONE:
        return (None, None) if entries is None else (0, [])
    has_completed = record.state is TaskState.COMPLETED
    committed = committed_entries(entries, num_tokens=record.num_committed, has_completed=has_completed)
    return len(committed), sorted({node_id for entry in committed for node_id in entry.keys})


def task_error(record: TaskRecord) -> Json | None:
    """Why the task failed or ended early; None while it runs and when it completed."""
    match record.state:
        case TaskState.FAILED:
            return _error(record.error_code or "generation_failed", record.error)
        case TaskState.CANCELLED:
            return _error(record.error_code or "task_cancelled", record.error or "the task was cancelled")
        case _:
            return None


def event_body(entry: StreamEntry, *, text: str = "") -> Json:
    """One entry of a task's stream as its SSE event tells it. `text`: what a commit's tokens add to the answer."""
    end = end_of(entry)
    if end is not None:
        code = end.error_code or ("task_cancelled" if end.state is TaskState.CANCELLED else None)
        error = _error(code, end.error) if code else None
        return {"status": end.state, "finish_reason": end.finish_reason, "error": error}
    if entry.kind == "commit":
        token_ids = [record.token_id for record in committed(entry)]
        return {"first": entry.data["first_index"], "token_ids": token_ids, "text": text}
    return dict(entry.data)


def is_terminal(record: TaskRecord) -> bool:
    return record.state in TERMINAL


def _is_verified(record: TaskRecord) -> bool:
    is_checked = record.task.verification is not Verification.NONE and record.state is TaskState.COMPLETED
    return is_checked and not record.is_revoked


def _error(code: str, message: str) -> Json:
    return {"code": code, "message": message, "retryable": error_from_code(code, message).retryable}


def _links(task_id: TaskId) -> Json:
    here = f"/v1/tasks/{task_id}"
    ends = ("result", "events", "receipt", "cancel")
    links: Json = {end: f"{here}/{end}" for end in ends}
    return {"self": here} | links


def _utc(unix_s: float | None) -> str | None:
    """RFC 3339 with milliseconds, in UTC."""
    if unix_s is None:
        return None
    moment = datetime.datetime.fromtimestamp(unix_s, tz=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
