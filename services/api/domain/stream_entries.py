"""What the entries of a task's event stream say, with types."""

from dataclasses import dataclass

from shared.domain.task import FinishReason, TokenRecord
from shared.domain.task_state import TaskState
from shared.registry.base import StreamEntry


@dataclass(frozen=True, slots=True)
class End:
    """The last entry of every stream."""

    state: TaskState
    finish_reason: FinishReason | None
    error_code: str | None
    error: str
    num_tokens: int | None
    """Tokens that belong to the answer."""


def committed(entry: StreamEntry) -> tuple[TokenRecord, ...]:
    """The tokens of a commit entry; none for entries of other kinds."""
    if entry.kind != "commit":
        return ()
    records = entry.data["records"]
    return tuple(records) if isinstance(records, tuple) else ()


def end_of(entry: StreamEntry) -> End | None:
    """How the task ended, when this entry tells it."""
    if entry.kind != "end":
        return None
    reason, code, count = (entry.data.get(key) for key in ("finish_reason", "error_code", "num_tokens"))
    return End(
        state=TaskState(str(entry.data["state"])),
        finish_reason=FinishReason(str(reason)) if reason else None,
        error_code=str(code) if code else None,
        error=str(entry.data.get("error") or ""),
        num_tokens=count if isinstance(count, int) else None,
    )


def entry_order(entry_id: str) -> tuple[int, int]:
    """Entry ids ("milliseconds-sequence") as they follow each other; what is none comes first of all."""
    first, _, second = entry_id.partition("-")
    if not (first.isdecimal() and first.isascii() and len(first) <= 20):
        return (0, 0)
    return (int(first), int(second) if second.isdecimal() and second.isascii() and len(second) <= 20 else 0)
