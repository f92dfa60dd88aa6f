"""What every task registry promises of an answer that is held back until its tail audit has passed."""

import pytest

from shared.domain.errors import InvalidTransition, StaleEpoch
from shared.domain.ids import Epoch, TaskId
from shared.domain.tail_state import TailState
from shared.domain.task import FinishReason, Verification
from shared.domain.task_state import TaskState
from shared.registry.base import Commit, TaskRegistry
from tests.contract.registry_steps import answer, computing, stream
from tests.fakes.tasks import make_task, make_tokens

NUM_TOKENS = 250


async def held(registry: TaskRegistry) -> tuple[TaskId, Epoch]:
    """A task whose last token is committed."""
    task = make_task(hold=True, verification=Verification.NONE, max_tokens=NUM_TOKENS)
    _, epoch = await computing(registry, task)
    assert await registry.commit([Commit(task.task_id, epoch, 0, make_tokens(*range(100)))]) == (100,)
    last = Commit(task.task_id, epoch, 100, make_tokens(*range(100, NUM_TOKENS + 1)))
    finish = answer(FinishReason.LENGTH, NUM_TOKENS)
    assert await registry.finish(task.task_id, epoch=epoch, finish=finish, last=last)
    assert await registry.finish(task.task_id, epoch=epoch, finish=finish, last=last)  # may arrive twice
    return task.task_id, epoch


async def test_its_end_is_only_written_once_its_audit_has_passed(registry: TaskRegistry) -> None:
    task_id, epoch = await held(registry)
    record = await registry.record(task_id)
    assert (record.state, record.num_committed, record.finished_s) == (TaskState.AGGREGATING, NUM_TOKENS, None)
    assert record.is_withheld
    assert {entry.kind for entry in await stream(registry, task_id)} == {"state"}

    epoch = await registry.begin_tail_audit(task_id, epoch=epoch)
    assert (await registry.record(task_id)).state is TaskState.AGGREGATING
    for _ in range(2):  # may arrive twice
        await registry.note_tail_audit(task_id, epoch=epoch, state=TailState.PASSED)
    record = await registry.record(task_id)
    assert (record.state, record.finish_reason) == (TaskState.COMPLETED, FinishReason.LENGTH)
    assert (record.tail_audit, record.is_withheld, record.is_revoked) == (TailState.PASSED, False, False)
    assert record.expires_s is not None
    assert await registry.tokens(task_id) == make_tokens(*range(NUM_TOKENS))
    *_, end = told = await stream(registry, task_id)
    commits = [entry.data for entry in told if entry.kind == "commit"]
    assert [token for each in commits for token in each["records"]] == list(make_tokens(*range(NUM_TOKENS)))  # type: ignore[attr-defined]
    assert end.data == {
        "state": "completed",
        "finish_reason": "length",
        "error_code": None,
        "error": "",
        "num_tokens": NUM_TOKENS,
    }


@pytest.mark.parametrize("outcome", [TailState.FAILED, TailState.SKIPPED])
async def test_it_fails_with_a_reason_when_the_audit_does_not_pass_and_its_stream_tells_no_token(
    registry: TaskRegistry, outcome: TailState
) -> None:
    task_id, epoch = await held(registry)
    epoch = await registry.begin_tail_audit(task_id, epoch=epoch)
    for _ in range(2):
        await registry.note_tail_audit(task_id, epoch=epoch, state=outcome, error_code="no_luck", error="it is so")
    record = await registry.record(task_id)
    assert (record.state, record.error_code, record.error) == (TaskState.FAILED, "no_luck", "it is so")
    assert (record.tail_audit, record.finish_reason, record.is_withheld) == (outcome, None, True)
    assert not record.is_revoked  # nobody has read it
    *_, end = told = await stream(registry, task_id)
    assert {entry.kind for entry in told} == {"state", "end"}
    assert (end.data["state"], end.data["error_code"]) == ("failed", "no_luck")


async def test_it_can_be_cancelled_while_it_is_held(registry: TaskRegistry) -> None:
    task_id, epoch = await held(registry)
    assert await registry.cancel(task_id) == (TaskState.CANCELLED, True)
    with pytest.raises((StaleEpoch, InvalidTransition)):
        await registry.note_tail_audit(task_id, epoch=epoch, state=TailState.PASSED)
    record = await registry.record(task_id)
    assert (record.state, record.is_withheld) == (TaskState.CANCELLED, True)
    assert {entry.kind for entry in await stream(registry, task_id)} == {"state", "end"}


async def test_an_outcome_of_a_stale_epoch_does_not_release_it(registry: TaskRegistry) -> None:
    task_id, epoch = await held(registry)
    await registry.begin_tail_audit(task_id, epoch=epoch)
    with pytest.raises(StaleEpoch):
        await registry.note_tail_audit(task_id, epoch=epoch, state=TailState.PASSED)
    assert (await registry.record(task_id)).state is TaskState.AGGREGATING
