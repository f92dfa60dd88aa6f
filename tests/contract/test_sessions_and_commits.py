"""What every task registry promises of a running task: its states, fences and tokens."""

import pytest

from shared.domain.errors import InvalidTransition, StaleAttempt, StaleEpoch, TaskNotFound
from shared.domain.ids import Epoch, TaskId
from shared.domain.task import FinishReason, TokenRecord
from shared.domain.task_state import TRANSITIONS, TaskEvent, TaskState
from shared.registry.base import Commit, TaskRegistry
from tests.contract.registry_steps import answer, claim, computing, in_state, stream, submit
from tests.fakes.tasks import make_task, make_token, make_tokens


@pytest.mark.parametrize("state", [state for state in TaskState if state is not TaskState.SUBMITTED])
async def test_every_event_leads_where_the_table_says(registry: TaskRegistry, state: TaskState) -> None:
    for event in TaskEvent:
        task_id = await in_state(registry, state)
        attempt = (await registry.record(task_id)).attempt  # a fence, so that it is not the step that led here
        if (state, event) in TRANSITIONS:
            after = TRANSITIONS[state, event]
            assert await registry.advance(task_id, event, attempt=attempt) is after
            assert (await registry.record(task_id)).state is after
        else:
            before = await stream(registry, task_id)
            with pytest.raises(InvalidTransition):
                await registry.advance(task_id, event, attempt=attempt)
            assert (await registry.record(task_id)).state is state
            assert await stream(registry, task_id) == before


async def test_an_event_applied_twice_is_told_once(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    (claimed,) = await claim(registry)
    for _ in range(2):
        state = await registry.advance(
            task.task_id, TaskEvent.PARTITION_COMPLETE, attempt=claimed.attempt, plan_id="plan-1"
        )
        assert state is TaskState.COORDINATING
    assert (await registry.record(task.task_id)).plan_id == "plan-1"
    assert len(await stream(registry, task.task_id)) == 3
    for _ in range(2):
        await registry.advance(task.task_id, TaskEvent.FAIL, attempt=claimed.attempt, error_code="x", error="why")
    assert [entry.kind for entry in await stream(registry, task.task_id)] == ["state"] * 3 + ["end"]


async def test_a_writer_with_an_older_fence_is_refused(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    (old,) = await claim(registry)
    await registry.advance(task.task_id, TaskEvent.REQUEUE, attempt=old.attempt)
    (new,) = await claim(registry, plan="plan-1")
    with pytest.raises(StaleAttempt):
        await registry.advance(task.task_id, TaskEvent.PARTITION_COMPLETE, attempt=old.attempt)
    with pytest.raises(StaleAttempt):
        await registry.open_session(
            task.task_id, attempt=old.attempt, plan_id="plan-1", coordinator="coordinator-1", lease_s=3.0
        )
    first, _, _ = await registry.open_session(
        task.task_id, attempt=new.attempt, plan_id="plan-1", coordinator="coordinator-1", lease_s=3.0
    )
    second, _, _ = await registry.open_session(
        task.task_id, attempt=new.attempt, plan_id="plan-1", coordinator="coordinator-1", lease_s=3.0
    )
    assert second > first
    with pytest.raises(StaleEpoch):
        await registry.advance(task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=first)
    assert await registry.advance(task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=second) is TaskState.COMPUTING


async def test_a_session_given_up_by_requeue_cannot_write(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    (claimed,) = await claim(registry, plan="plan-1")
    epoch, _, _ = await registry.open_session(
        task.task_id, attempt=claimed.attempt, plan_id="plan-1", coordinator="coordinator-1", lease_s=3.0
    )
    await registry.advance(task.task_id, TaskEvent.REQUEUE, attempt=claimed.attempt)
    with pytest.raises(StaleEpoch):
        await registry.advance(task.task_id, TaskEvent.FAIL, epoch=epoch, error_code="x")
    await claim(registry, plan="plan-1")
    with pytest.raises(StaleEpoch):
        await registry.advance(task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=epoch)


async def test_a_session_opens_with_the_task_and_what_is_committed(registry: TaskRegistry) -> None:
    task = make_task()
    _, epoch = await computing(registry, task)
    await registry.commit([Commit(task.task_id, epoch, 0, make_tokens(4, 5))])
    again, record, tokens = await registry.open_session(
        task.task_id, attempt=None, plan_id="plan-2", coordinator="coordinator-1", lease_s=3.0
    )
    assert again == epoch + 1
    assert (record.task, record.state, record.plan_id) == (task, TaskState.COORDINATING, "plan-2")
    assert (record.epoch, record.num_committed) == (again, 2)
    assert tokens == make_tokens(4, 5)
    assert (await stream(registry, task.task_id))[-1].data["to"] == "coordinating"


async def test_a_session_cannot_open_for_a_queued_or_ended_task(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    for _ in range(2):
        with pytest.raises(InvalidTransition):
            await registry.open_session(
                task.task_id, attempt=None, plan_id="plan-1", coordinator="coordinator-1", lease_s=3.0
            )
        await registry.cancel(task.task_id)


async def test_unknown_tasks_are_not_found(registry: TaskRegistry) -> None:
    unknown = TaskId("unknown")
    for call in (
        registry.record(unknown),
        registry.tokens(unknown),
        registry.cancel(unknown),
        registry.advance(unknown, TaskEvent.FAIL),
        registry.open_session(unknown, attempt=None, plan_id="", coordinator="coordinator-1", lease_s=3.0),
        registry.finish(unknown, epoch=Epoch(1), finish=answer(FinishReason.STOP, 0), last=None),
    ):
        with pytest.raises(TaskNotFound):
            await call
    assert await registry.commit([Commit(unknown, Epoch(1), 0, make_tokens(1))]) == (None,)


async def test_committed_tokens_are_kept_and_streamed_exactly(registry: TaskRegistry) -> None:
    task = make_task()
    _, epoch = await computing(registry, task)
    records = (
        TokenRecord(7, 1 / 3, 8, -2.5e-7, logprob=-0.1, top_logprobs=((7, -0.1), (8, -2.75))),
        TokenRecord(8, 0.0, 9, -1.0, logprob=-0.5),
        make_token(9),
    )
    assert await registry.commit([Commit(task.task_id, epoch, 0, records)]) == (3,)
    assert await registry.tokens(task.task_id) == records
    entry = (await stream(registry, task.task_id))[-1]
    assert (entry.kind, entry.data) == ("commit", {"first_index": 0, "records": records})


async def test_commits_may_overlap_but_leave_no_gap(registry: TaskRegistry) -> None:
    task = make_task()
    _, epoch = await computing(registry, task)
    commits = [
        Commit(task.task_id, epoch, 0, make_tokens(1, 2)),
        Commit(task.task_id, epoch, 1, make_tokens(2, 3)),
        Commit(task.task_id, epoch, 0, make_tokens(1, 2)),
        Commit(task.task_id, epoch, 5, make_tokens(6)),
    ]
    assert await registry.commit(commits) == (2, 3, 3, 3)
    assert await registry.tokens(task.task_id) == make_tokens(1, 2, 3)
    commits_told = [entry.data for entry in await stream(registry, task.task_id) if entry.kind == "commit"]
    assert [told["first_index"] for told in commits_told] == [0, 2]


async def test_a_commit_with_an_older_epoch_is_refused(registry: TaskRegistry) -> None:
    task, other = make_task(), make_task()
    _, old = await computing(registry, task)
    _, others = await computing(registry, other)
    new, _, _ = await registry.open_session(
        task.task_id, attempt=None, plan_id="plan-2", coordinator="coordinator-1", lease_s=3.0
    )
    assert await registry.commit([Commit(task.task_id, new, 0, make_tokens(1))]) == (None,)  # not Computing yet
    await registry.advance(task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=new)
    assert await registry.commit(
        [
            Commit(task.task_id, old, 0, make_tokens(1)),
            Commit(other.task_id, others, 0, make_tokens(1)),
            Commit(task.task_id, new, 0, make_tokens(2)),
        ]
    ) == (None, 1, 1)
    assert await registry.tokens(task.task_id) == make_tokens(2)
