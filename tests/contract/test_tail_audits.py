"""What every task registry promises of the fresh audit of an answer that has ended."""

import pytest

from shared.domain.errors import InvalidTransition, StaleEpoch, TaskNotFound
from shared.domain.ids import Epoch, TaskId
from shared.domain.tail_state import TailState
from shared.domain.task import FinishReason
from shared.domain.task_state import TaskState
from shared.registry.base import Commit, TaskRegistry
from tests.contract.registry_steps import answer, computing
from tests.fakes.tasks import make_task, make_tokens


async def completed(registry: TaskRegistry) -> tuple[TaskId, Epoch]:
    task = make_task()
    _, epoch = await computing(registry, task)
    last = Commit(task.task_id, epoch, 0, make_tokens(1, 2))
    assert await registry.finish(task.task_id, epoch=epoch, finish=answer(FinishReason.STOP, 2), last=last)
    return task.task_id, epoch


async def test_it_takes_the_next_epoch_of_a_completed_task_and_nothing_else_changes(registry: TaskRegistry) -> None:
    task_id, epoch = await completed(registry)
    before = await registry.record(task_id)
    assert before.tail_audit is TailState.NONE
    assert await registry.begin_tail_audit(task_id, epoch=epoch) == epoch + 1
    record = await registry.record(task_id)
    assert (record.state, record.epoch, record.tail_audit) == (TaskState.COMPLETED, epoch + 1, TailState.PENDING)
    assert (record.finished_s, record.expires_s) == (before.finished_s, before.expires_s)
    assert await registry.tokens(task_id) == make_tokens(1, 2)


async def test_the_outcome_is_kept_with_the_task(registry: TaskRegistry) -> None:
    task_id, epoch = await completed(registry)
    epoch = await registry.begin_tail_audit(task_id, epoch=epoch)
    for state, is_revoked in ((TailState.PASSED, False), (TailState.FAILED, True)):
        await registry.note_tail_audit(task_id, epoch=epoch, state=state)
        record = await registry.record(task_id)
        assert (record.tail_audit, record.is_revoked) == (state, is_revoked)


async def test_an_outcome_is_not_pending_again(registry: TaskRegistry) -> None:
    task_id, epoch = await completed(registry)
    for state in (TailState.PENDING, TailState.SKIPPED, TailState.PENDING):
        await registry.note_tail_audit(task_id, epoch=epoch, state=state)
    assert (await registry.record(task_id)).tail_audit is TailState.SKIPPED


async def test_a_stale_epoch_changes_nothing(registry: TaskRegistry) -> None:
    task_id, epoch = await completed(registry)
    await registry.begin_tail_audit(task_id, epoch=epoch)
    with pytest.raises(StaleEpoch):
        await registry.begin_tail_audit(task_id, epoch=epoch)
    with pytest.raises(StaleEpoch):
        await registry.note_tail_audit(task_id, epoch=epoch, state=TailState.FAILED)
    assert (await registry.record(task_id)).tail_audit is TailState.PENDING


async def test_only_a_completed_task_is_audited(registry: TaskRegistry) -> None:
    task = make_task()
    _, epoch = await computing(registry, task)
    with pytest.raises(InvalidTransition):
        await registry.begin_tail_audit(task.task_id, epoch=epoch)
    with pytest.raises(InvalidTransition):
        await registry.note_tail_audit(task.task_id, epoch=epoch, state=TailState.PASSED)
    with pytest.raises(TaskNotFound):
        await registry.begin_tail_audit(TaskId("unknown"), epoch=epoch)
