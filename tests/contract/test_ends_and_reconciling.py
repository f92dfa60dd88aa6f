"""What every task registry promises of the end: answers, failures, cancelling, leases, deadlines, clients that left."""

import pytest

from shared.domain.errors import Fenced, InvalidTransition, ResultExpired, StaleAttempt
from shared.domain.ids import Epoch, ModelId, TaskId
from shared.domain.task import FinishReason
from shared.domain.task_state import TERMINAL, TaskEvent, TaskState
from shared.registry.base import Commit, Reconciled, TaskRegistry
from tests.contract.registry_steps import (
    answer,
    claim,
    computing,
    in_state,
    reconcile,
    reconciled,
    stream,
    submit,
    until,
)
from tests.fakes.tasks import GROUP, make_task, make_tokens


async def test_finish_commits_the_rest_and_ends_the_task_with_one_entry(registry: TaskRegistry) -> None:
    task = make_task()
    _, epoch = await computing(registry, task)
    await registry.commit([Commit(task.task_id, epoch, 0, make_tokens(1, 2))])
    last = Commit(task.task_id, epoch, 1, make_tokens(2, 3, 4, 5))
    for _ in range(2):
        assert await registry.finish(task.task_id, epoch=epoch, finish=answer(FinishReason.STOP, 3), last=last)
    record = await registry.record(task.task_id)
    assert (record.state, record.finish_reason, record.num_committed) == (TaskState.COMPLETED, FinishReason.STOP, 3)
    assert record.finished_s is not None
    assert record.started_s is not None
    assert record.expires_s == pytest.approx(record.finished_s + task.result_ttl_s)
    assert await registry.tokens(task.task_id) == make_tokens(1, 2, 3)
    *_, rest, end = await stream(registry, task.task_id)
    assert rest.data == {"first_index": 2, "records": make_tokens(3)}
    assert end.kind == "end"
    assert end.data == {
        "state": "completed",
        "finish_reason": "stop",
        "error_code": None,
        "error": "",
        "num_tokens": 3,
    }


async def test_finish_cuts_what_was_committed_too_far(registry: TaskRegistry) -> None:
    task, empty = make_task(), make_task()
    for each, kept in ((task, 1), (empty, 0)):
        _, epoch = await computing(registry, each)
        await registry.commit([Commit(each.task_id, epoch, 0, make_tokens(1, 2, 3))])
        assert await registry.finish(each.task_id, epoch=epoch, finish=answer(FinishReason.LENGTH, kept), last=None)
        assert await registry.tokens(each.task_id) == make_tokens(1, 2, 3)[:kept]
        assert (await stream(registry, each.task_id))[-1].data["num_tokens"] == kept


async def test_an_answer_with_a_gap_or_an_older_epoch_does_not_finish(registry: TaskRegistry) -> None:
    task = make_task()
    _, epoch = await computing(registry, task)
    late = Commit(task.task_id, epoch, 2, make_tokens(3))
    with pytest.raises(InvalidTransition):
        await registry.finish(task.task_id, epoch=epoch, finish=answer(FinishReason.STOP, 3), last=late)
    stale = Epoch(epoch - 1)
    assert not await registry.finish(task.task_id, epoch=stale, finish=answer(FinishReason.STOP, 0), last=None)
    assert (await registry.record(task.task_id)).state is TaskState.COMPUTING


async def test_a_failed_task_says_why_and_keeps_what_it_has(registry: TaskRegistry) -> None:
    task = make_task()
    _, epoch = await computing(registry, task)
    await registry.commit([Commit(task.task_id, epoch, 0, make_tokens(1))])
    why = 'a "quoted" reason, ünd\nmore'
    await registry.advance(task.task_id, TaskEvent.FAIL, epoch=epoch, error_code="engine_error", error=why)
    record = await registry.record(task.task_id)
    assert (record.error_code, record.error) == ("engine_error", why)
    end = (await stream(registry, task.task_id))[-1].data
    assert (end["state"], end["error_code"], end["error"]) == ("failed", "engine_error", why)
    assert await registry.tokens(task.task_id) == make_tokens(1)


async def test_a_result_expires_and_the_record_outlives_it(registry: TaskRegistry) -> None:
    task = make_task(result_ttl_s=0)
    _, epoch = await computing(registry, task)
    await registry.finish(
        task.task_id,
        epoch=epoch,
        finish=answer(FinishReason.STOP, 1),
        last=Commit(task.task_id, epoch, 0, make_tokens(1)),
    )

    async def expired() -> bool:
        try:
            await registry.tokens(task.task_id)
        except ResultExpired:
            return True
        return False

    await until(expired)
    assert await stream(registry, task.task_id) == ()
    record = await registry.record(task.task_id)
    assert record.task.prompt_ids == ()
    assert (record.state, record.num_prompt_tokens, record.num_committed) == (TaskState.COMPLETED, 3, 1)


@pytest.mark.parametrize("state", [state for state in TaskState if state is not TaskState.SUBMITTED])
async def test_cancel_ends_whatever_is_not_committing_or_over(registry: TaskRegistry, state: TaskState) -> None:
    task_id = await in_state(registry, state)
    epoch = (await registry.record(task_id)).epoch
    now, cancelled = await registry.cancel(task_id)
    if state in TERMINAL or state is TaskState.COMMITTING:
        assert (now, cancelled) == (state, False)
    else:
        assert (now, cancelled) == (TaskState.CANCELLED, True)
        assert (await registry.record(task_id)).epoch == epoch + 1
        assert (await stream(registry, task_id))[-1].data["state"] == "cancelled"
        assert await registry.cancel(task_id) == (TaskState.CANCELLED, False)
    assert await claim(registry) == ()


async def test_a_cancelled_task_takes_no_more_tokens_and_keeps_the_committed_ones(registry: TaskRegistry) -> None:
    task = make_task()
    claimed, epoch = await computing(registry, task)
    await registry.commit([Commit(task.task_id, epoch, 0, make_tokens(1))])
    await registry.cancel(task.task_id)
    assert await registry.commit([Commit(task.task_id, epoch, 1, make_tokens(2))]) == (None,)
    assert not await registry.finish(task.task_id, epoch=epoch, finish=answer(FinishReason.STOP, 1), last=None)
    with pytest.raises(Fenced):
        await registry.advance(task.task_id, TaskEvent.REASSIGN, epoch=epoch)
    assert await registry.tokens(task.task_id) == make_tokens(1)
    assert await registry.renew([task.task_id], owner="replica-1", lease_s=1) == (claimed.task_id,)


async def test_only_the_owner_renews_a_lease(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    await claim(registry)
    unknown = TaskId("unknown")
    assert await registry.renew([task.task_id, unknown], owner="replica-1", lease_s=10) == (unknown,)
    assert await registry.renew([task.task_id], owner="replica-2", lease_s=10) == (task.task_id,)


async def test_a_lease_lapsed_before_there_is_a_session_requeues_the_task(registry: TaskRegistry) -> None:
    without_plan, with_plan = make_task(), make_task()
    await submit(registry, without_plan)
    (first,) = await claim(registry, lease_s=0)
    await submit(registry, with_plan)
    (second,) = await claim(registry, lease_s=0, plan="plan-1")
    mended = await reconciled(registry)
    assert set(mended.requeued) == {without_plan.task_id, with_plan.task_id}
    assert (await registry.record(without_plan.task_id)).state is TaskState.QUEUED
    assert [each.task_id for each in await claim(registry, 2)] == [without_plan.task_id, with_plan.task_id]
    with pytest.raises(StaleAttempt):
        await registry.advance(without_plan.task_id, TaskEvent.PARTITION_COMPLETE, attempt=first.attempt)
    with pytest.raises(StaleAttempt):  # a scheduler that only was slow
        await registry.open_session(
            with_plan.task_id, attempt=second.attempt, plan_id="plan-1", coordinator="coordinator-1", lease_s=3.0
        )


async def test_a_lease_lapsed_while_a_session_starts_is_adopted_and_the_session_goes_on(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    (claimed,) = await claim(registry, lease_s=0, plan="plan-1")
    epoch, _, _ = await registry.open_session(
        task.task_id, attempt=claimed.attempt, plan_id="plan-1", coordinator="coordinator-1", lease_s=3.0
    )
    assert await reconciled(registry) == Reconciled(adopted=(task.task_id,))
    record = await registry.record(task.task_id)
    assert (record.state, record.attempt, record.epoch) == (TaskState.COORDINATING, claimed.attempt + 1, epoch)
    assert await registry.advance(task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=epoch) is TaskState.COMPUTING


async def test_reconciling_tells_when_the_first_lease_lapses(registry: TaskRegistry) -> None:
    assert (await reconcile(registry)).next_lapse_s is None
    for lease_s in (60.0, 20.0):
        await submit(registry, make_task())
        await claim(registry, lease_s=lease_s)
    next_lapse_s = (await reconcile(registry)).next_lapse_s
    assert next_lapse_s is not None
    assert 10.0 < next_lapse_s <= 20.0


async def test_a_lease_lapsed_while_computing_is_adopted_and_the_session_goes_on(registry: TaskRegistry) -> None:
    task = make_task()
    claimed, epoch = await computing(registry, task, lease_s=0)
    mended = await reconciled(registry)
    assert mended == Reconciled(adopted=(task.task_id,))
    record = await registry.record(task.task_id)
    assert (record.state, record.attempt, record.epoch) == (TaskState.COMPUTING, claimed.attempt + 1, epoch)
    assert await registry.renew([task.task_id], owner="replica-2", lease_s=10) == ()
    assert await registry.commit([Commit(task.task_id, epoch, 0, make_tokens(1))]) == (1,)
    assert await reconcile(registry) == Reconciled()


async def test_a_lease_given_up_lapses_at_once(registry: TaskRegistry) -> None:
    task = make_task()
    await computing(registry, task)
    assert await reconcile(registry) == Reconciled()
    await registry.renew([task.task_id], owner="replica-1", lease_s=0)
    assert (await reconciled(registry)).adopted == (task.task_id,)


async def test_a_task_whose_schedulers_keep_dying_fails_but_giving_back_does_not_count(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    for _ in range(4):
        (claimed,) = await claim(registry)
        await registry.advance(task.task_id, TaskEvent.REQUEUE, attempt=claimed.attempt)
    await claim(registry, lease_s=0)
    assert (await reconciled(registry, max_attempts=2)).requeued == (task.task_id,)
    await claim(registry, lease_s=0)
    assert (await reconciled(registry, max_attempts=2)).exhausted == (task.task_id,)
    record = await registry.record(task.task_id)
    assert (record.state, record.error_code, record.attempt) == (TaskState.FAILED, "attempts_exhausted", 6)


async def test_a_task_past_its_deadline_fails_and_says_what_it_waited_for(registry: TaskRegistry) -> None:
    queued, unexplained = make_task(deadline_s=0), make_task(deadline_s=0, model_id=ModelId("other"))
    running = make_task(deadline_s=0.2)
    await computing(registry, running)
    await submit(registry, queued)
    await submit(registry, unexplained)
    ended: set[TaskId] = set()

    async def all_ended() -> bool:
        assert await claim(registry) == ()
        ended.update((await reconcile(registry, waiting={GROUP: "no node is ready"})).expired)
        return len(ended) == 3

    await until(all_ended)
    record = await registry.record(queued.task_id)
    assert (record.state, record.error_code) == (TaskState.FAILED, "deadline_exceeded")
    assert record.error == "the deadline passed while the task was queued: no node is ready"
    assert (await registry.record(unexplained.task_id)).error == "the deadline passed while the task was queued"
    assert (await registry.record(running.task_id)).error == "the deadline passed while the task was computing"
    assert (await registry.queue()).depth == 0


async def test_a_task_whose_client_is_gone_is_cancelled(registry: TaskRegistry) -> None:
    gone, there, never_attached = make_task(), make_task(), make_task()
    await submit(registry, gone, attached=True)
    await submit(registry, there, attached=True)
    await submit(registry, never_attached)
    assert await reconcile(registry) == Reconciled()
    await registry.attach([gone.task_id, never_attached.task_id], ttl_s=0)
    await registry.attach([there.task_id], ttl_s=10)
    assert await reconciled(registry) == Reconciled(detached=(gone.task_id,))
    assert (await registry.record(gone.task_id)).state is TaskState.CANCELLED
