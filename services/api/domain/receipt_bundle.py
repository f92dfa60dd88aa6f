"""The proof of an answer, from what the registry keeps of its task."""

from collections.abc import Sequence

from shared.domain.bundle import Bundle, committed_entries, profile_of
from shared.domain.errors import ReceiptNotAvailable
from shared.domain.tail_audit import TailAudit
from shared.domain.tail_state import TailState
from shared.domain.task import TokenRecord, Verification
from shared.domain.task_state import TERMINAL, TaskState
from shared.domain.window_entry import WindowEntry
from shared.registry.base import TaskRecord

_WITH_PROOF = frozenset({TailState.PASSED, TailState.FAILED})


def bundle_of(
    record: TaskRecord, entries: Sequence[WindowEntry], tokens: Sequence[TokenRecord], tail: TailAudit | None
) -> Bundle:
    """`tokens`, `tail`: at least what there was when `record` was read. Raises `ReceiptNotAvailable` without a
    window."""
    task = record.task
    has_completed = record.state is TaskState.COMPLETED
    committed = committed_entries(entries, num_tokens=record.num_committed, has_completed=has_completed)
    if not committed:
        raise ReceiptNotAvailable(_why_not(record))
    reached = committed[-1].num_tokens
    return Bundle(
        task_id=task.task_id,
        choice=0,
        model_id=task.model_id,
        profile=profile_of(committed),
        mode=committed[0].mode,
        f=committed[0].f,
        complete=has_completed and reached >= record.num_committed,
        finish_reason=record.finish_reason,
        sampler=task.sampler,
        prompt_ids=task.prompt_ids,
        answer_ids=tuple(token.token_id for token in tokens[: min(reached, record.num_committed)]),
        entries=committed,
        tail_state=record.tail_audit,
        tail=tail if record.tail_audit in _WITH_PROOF else None,
    )


def why_withheld(record: TaskRecord) -> str:
    if record.state in TERMINAL:
        return "the answer was held back and has not passed its tail audit, so nothing of it is shown"
    return "the answer is held back until its tail audit has passed; ask again later"


def _why_not(record: TaskRecord) -> str:
    if record.task.verification is Verification.NONE:
        return "the task asked for no verification, so its answer has no receipt"
    if record.state in TERMINAL:
        return "the task ended before anything was committed, so there is no receipt"
    return "nothing of the answer is committed yet; ask again later"
