"""What every task registry promises, whatever it is made of."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from shared.domain.errors import (
    Fenced,
    IdempotencyKeyReused,
    InvalidCursor,
    InvalidTransition,
    QueueFull,
    QuotaExceeded,
    ResultExpired,
    StaleAttempt,
    StaleEpoch,
    TaskNotFound,
)
from shared.domain.ids import Attempt, Epoch, ModelId, TaskId
from shared.domain.task import (
    FinishReason,
    InferenceTask,
    SamplerParams,
    StopRules,
    TaskGroup,
    TokenRecord,
    Verification,
)
from shared.domain.task_state import TERMINAL, TRANSITIONS, TaskEvent, TaskState
from shared.registry.base import Claim, Commit, Finish, Reconciled, StreamEntry, Submission, TaskRegistry
from shared.registry.redis_registry import connect_registry
from tests.fakes.task_registry import MemoryTaskRegistry
from tests.fakes.tasks import GROUP, MODEL, make_task, make_token, make_tokens
from tests.fakes.valkey import ValkeyServer

LIMIT_S = 5.0


@pytest.fixture(params=["memory", "redis"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[TaskRegistry]:
    if request.param == "memory":
        yield MemoryTaskRegistry()
        return
    server: ValkeyServer = request.getfixturevalue("valkey")
    server.empty()
    registry = connect_registry(server.url, allow_weak_durability=False)
    yield registry
    await registry.aclose()


async def submit(
    registry: TaskRegistry,
    task: InferenceTask,
    *,
    key: str | None = None,
    attached: bool = False,
    rank: int | None = None,
) -> TaskId:
    submission = await registry.submit(
        task,
        idempotency_key=key,
        payload_hash="hash",
        attached=attached,
        max_queue_size=1_000,
        max_queued_per_owner=1_000,
        rank=rank,
    )
    return submission.task_id


async def claim(
    registry: TaskRegistry, count: int = 1, *, lease_s: float = 10.0, plan: str | None = None
) -> tuple[Claim, ...]:
    return await registry.claim(GROUP, count, owner="replica-1", lease_s=lease_s, plan_id=plan)


async def computing(registry: TaskRegistry, task: InferenceTask, *, lease_s: float = 10.0) -> tuple[Claim, Epoch]:
    """Submit `task` into an empty queue and bring it to Computing."""
    await submit(registry, task)
    (claimed,) = await claim(registry, lease_s=lease_s, plan="plan-1")
    epoch, _, _ = await registry.open_session(claimed.task_id, attempt=claimed.attempt, plan_id="plan-1")
    await registry.advance(claimed.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=epoch)
    return claimed, epoch


async def reconcile(
    registry: TaskRegistry, *, max_attempts: int = 5, waiting: dict[TaskGroup, str] | None = None
) -> Reconciled:
    return await registry.reconcile(
        limit=100, max_attempts=max_attempts, owner="replica-2", lease_s=10.0, waiting=waiting or {}
    )


async def stream(registry: TaskRegistry, task_id: TaskId, after: str = "0") -> tuple[StreamEntry, ...]:
    return (await registry.read_streams({task_id: after}, block_s=0)).get(task_id, ())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not await condition():
        assert time.monotonic() < limit, "the condition did not come true in time"
        await asyncio.sleep(0.005)


async def reconciled(registry: TaskRegistry, *, max_attempts: int = 5) -> Reconciled:
    """The first pass that mends anything."""
    found = Reconciled()

    async def mended() -> bool:
        nonlocal found
        found = await reconcile(registry, max_attempts=max_attempts)
        return found != Reconciled()

    await until(mended)
    return found


def answer(reason: FinishReason, num_tokens: int) -> Finish:
    return Finish(finish_reason=reason, num_tokens=num_tokens)


# Submission and queue


async def test_a_submitted_task_is_queued_with_all_it_came_with(registry: TaskRegistry) -> None:
    task = make_task(
        sampler=SamplerParams(temperature=0.7, seed=2**64 - 1, logit_bias=((5, -1.5),), logprobs=2),
        stop=StopRules(end_ids=(2,), strings=("\n\n", "ünd")),
        metadata=(("team", "a"),),
        prompt_ids=(0, 151_935, 7),
        deadline_s=30.0,
    )
    assert await registry.submit(
        task, idempotency_key=None, payload_hash="", attached=False, max_queue_size=1, max_queued_per_owner=1
    ) == Submission(task.task_id, TaskState.QUEUED, created=True, queue_size=1)
    record = await registry.record(task.task_id)
    assert record.task == task
    assert (record.state, record.attempt, record.epoch, record.num_committed) == (TaskState.QUEUED, 0, 0, 0)
    assert record.deadline_s - record.created_s == pytest.approx(30.0)
    assert record.num_prompt_tokens == 3
    (entry,) = await stream(registry, task.task_id)
    assert entry.kind == "state"
    assert entry.data == {"from": "submitted", "to": "queued", "attempt": 0, "epoch": 0}


async def test_the_same_submission_sent_twice_makes_one_task(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    await submit(registry, task)
    assert (await registry.queue()).depth == 1
    assert len(await stream(registry, task.task_id)) == 1


async def test_an_idempotency_key_leads_to_the_earlier_task_of_its_owner_only(registry: TaskRegistry) -> None:
    first, second, foreign = make_task(), make_task(), make_task(owner="bert")
    await submit(registry, first, key="k")
    again = await registry.submit(
        second, idempotency_key="k", payload_hash="hash", attached=False, max_queue_size=9, max_queued_per_owner=9
    )
    assert again == Submission(first.task_id, TaskState.QUEUED, created=False, queue_size=1)
    assert await submit(registry, foreign, key="k") == foreign.task_id
    with pytest.raises(TaskNotFound):
        await registry.record(second.task_id)
    with pytest.raises(IdempotencyKeyReused):
        await registry.submit(
            second, idempotency_key="k", payload_hash="other", attached=False, max_queue_size=9, max_queued_per_owner=9
        )


async def test_a_full_queue_refuses_over_all_models(registry: TaskRegistry) -> None:
    await submit(registry, make_task())
    await submit(registry, make_task(model_id=ModelId("other")))
    with pytest.raises(QueueFull) as refused:
        await registry.submit(
            make_task(), idempotency_key=None, payload_hash="", attached=False, max_queue_size=2, max_queued_per_owner=9
        )
    assert refused.value.retry_after_s is not None


async def test_an_owner_with_too_many_unfinished_tasks_is_refused_until_one_ends(registry: TaskRegistry) -> None:
    async def submit_bounded(task: InferenceTask) -> None:
        await registry.submit(
            task, idempotency_key=None, payload_hash="", attached=False, max_queue_size=9, max_queued_per_owner=1
        )

    running = make_task()
    await computing(registry, running)
    with pytest.raises(QuotaExceeded):
        await submit_bounded(make_task())
    await submit_bounded(make_task(owner="bert"))
    await registry.cancel(running.task_id)
    await submit_bounded(make_task())


async def test_claims_go_by_priority_then_by_arrival(registry: TaskRegistry) -> None:
    priorities = (0, 5, 5, 100, 0, 99)
    tasks = [make_task(priority=priority) for priority in priorities]
    for task in tasks:
        await submit(registry, task)
    claims = await claim(registry, 6)
    assert [claimed.task_id for claimed in claims] == [tasks[place].task_id for place in (3, 5, 1, 2, 0, 4)]


async def test_with_equal_ranks_priority_is_ignored(registry: TaskRegistry) -> None:
    tasks = [make_task(priority=priority) for priority in (1, 100, 50)]
    for task in tasks:
        await submit(registry, task, rank=0)
    assert [claimed.task_id for claimed in await claim(registry, 3)] == [task.task_id for task in tasks]


async def test_a_requeued_task_takes_its_old_place(registry: TaskRegistry) -> None:
    first, second = make_task(), make_task()
    await submit(registry, first)
    await submit(registry, second)
    (claimed,) = await claim(registry)
    await registry.advance(first.task_id, TaskEvent.REQUEUE, attempt=claimed.attempt)
    assert [each.task_id for each in await claim(registry, 2)] == [first.task_id, second.task_id]


async def test_200_concurrent_claims_give_each_task_once(registry: TaskRegistry) -> None:
    tasks = [make_task() for _ in range(200)]
    for task in tasks:
        await submit(registry, task)
    found = await asyncio.gather(*(claim(registry) for _ in range(200)))
    assert sorted(claimed.task_id for claims in found for claimed in claims) == sorted(task.task_id for task in tasks)
    assert await claim(registry) == ()


async def test_a_claim_is_leased_and_told(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    assert await claim(registry) == (Claim(task.task_id, Attempt(1)),)
    record = await registry.record(task.task_id)
    assert (record.state, record.attempt) == (TaskState.PARTITIONING, 1)
    assert (await stream(registry, task.task_id))[-1].data == {
        "from": "queued",
        "to": "partitioning",
        "attempt": 1,
        "epoch": 0,
    }
    assert await registry.renew([task.task_id], owner="replica-1", lease_s=10) == ()


async def test_a_claim_with_a_plan_goes_on_to_coordinating(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    await claim(registry, plan="plan-7")
    record = await registry.record(task.task_id)
    assert (record.state, record.plan_id) == (TaskState.COORDINATING, "plan-7")
    assert [entry.data["to"] for entry in await stream(registry, task.task_id)] == [
        "queued",
        "partitioning",
        "coordinating",
    ]


async def test_groups_are_those_with_queued_tasks(registry: TaskRegistry) -> None:
    await submit(registry, make_task())
    await submit(registry, make_task(model_id=ModelId("other")))
    assert await registry.groups() == (TaskGroup(ModelId("other")), GROUP)
    await claim(registry)
    assert await registry.groups() == (TaskGroup(ModelId("other")),)


async def test_tasks_that_need_other_lanes_wait_in_a_queue_of_their_own(registry: TaskRegistry) -> None:
    plain, audited = make_task(), make_task(verification=Verification.AUDIT, max_byzantine=1)
    await submit(registry, plain)
    await submit(registry, audited)
    assert set(await registry.groups()) == {GROUP, audited.group}
    claims = await registry.claim(audited.group, 5, owner="replica-1", lease_s=10, plan_id="plan-1")
    assert [claim.task_id for claim in claims] == [audited.task_id]
    assert await registry.groups() == (GROUP,)
    assert (await registry.queue()).depth == 1


async def test_the_queue_is_described(registry: TaskRegistry) -> None:
    assert (await registry.queue()).oldest_age_s is None
    for priority in (0, 0, 7, 100):
        await submit(registry, make_task(priority=priority))
    await submit(registry, make_task(priority=7, model_id=ModelId("other")))
    await claim(registry)
    view = await registry.queue()
    assert (view.depth, view.running, dict(view.by_priority)) == (4, 1, {0: 2, 7: 2})
    assert view.oldest_age_s is not None
    assert 0 <= view.oldest_age_s < LIMIT_S


async def test_waiting_ends_when_a_task_is_queued_and_when_one_ends(registry: TaskRegistry) -> None:
    assert not await registry.wait_for_work(0.01)
    waiting = asyncio.ensure_future(registry.wait_for_work(LIMIT_S))
    task = make_task()
    await submit(registry, task)
    assert await waiting
    await claim(registry)
    assert not await registry.wait_for_work(0.01)
    await registry.cancel(task.task_id)
    assert await registry.wait_for_work(LIMIT_S)


# The state machine and its fences


async def in_state(registry: TaskRegistry, state: TaskState) -> TaskId:
    """A task brought to `state` by events alone."""
    task = make_task()
    await submit(registry, task)
    paths: dict[TaskState, tuple[TaskEvent, ...]] = {TaskState.QUEUED: ()}
    frontier = [TaskState.QUEUED]
    while frontier:
        before = frontier.pop(0)
        for (origin, event), after in TRANSITIONS.items():
            if origin is before and after not in paths:
                paths[after] = (*paths[before], event)
                frontier.append(after)
    for event in paths[state]:
        await registry.advance(task.task_id, event)
    return task.task_id


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
        await registry.open_session(task.task_id, attempt=old.attempt, plan_id="plan-1")
    first, _, _ = await registry.open_session(task.task_id, attempt=new.attempt, plan_id="plan-1")
    second, _, _ = await registry.open_session(task.task_id, attempt=new.attempt, plan_id="plan-1")
    assert second > first
    with pytest.raises(StaleEpoch):
        await registry.advance(task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=first)
    assert await registry.advance(task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=second) is TaskState.COMPUTING


async def test_a_session_given_up_by_requeue_cannot_write(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    (claimed,) = await claim(registry, plan="plan-1")
    epoch, _, _ = await registry.open_session(task.task_id, attempt=claimed.attempt, plan_id="plan-1")
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
    again, record, tokens = await registry.open_session(task.task_id, attempt=None, plan_id="plan-2")
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
            await registry.open_session(task.task_id, attempt=None, plan_id="plan-1")
        await registry.cancel(task.task_id)


async def test_unknown_tasks_are_not_found(registry: TaskRegistry) -> None:
    unknown = TaskId("unknown")
    for call in (
        registry.record(unknown),
        registry.tokens(unknown),
        registry.cancel(unknown),
        registry.advance(unknown, TaskEvent.FAIL),
        registry.open_session(unknown, attempt=None, plan_id=""),
        registry.finish(unknown, epoch=Epoch(1), finish=answer(FinishReason.STOP, 0), last=None),
    ):
        with pytest.raises(TaskNotFound):
            await call
    assert await registry.commit([Commit(unknown, Epoch(1), 0, make_tokens(1))]) == (None,)


# Tokens and the end


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
    new, _, _ = await registry.open_session(task.task_id, attempt=None, plan_id="plan-2")
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


# Cancelling


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


# Leases, deadlines, attachments


async def test_only_the_owner_renews_a_lease(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    await claim(registry)
    unknown = TaskId("unknown")
    assert await registry.renew([task.task_id, unknown], owner="replica-1", lease_s=10) == (unknown,)
    assert await registry.renew([task.task_id], owner="replica-2", lease_s=10) == (task.task_id,)


async def test_a_lease_lapsed_before_computing_requeues_the_task(registry: TaskRegistry) -> None:
    waiting, starting = make_task(), make_task()
    await submit(registry, waiting)
    (first,) = await claim(registry, lease_s=0)
    await submit(registry, starting)
    (second,) = await claim(registry, lease_s=0, plan="plan-1")
    epoch, _, _ = await registry.open_session(starting.task_id, attempt=second.attempt, plan_id="plan-1")
    mended = await reconciled(registry)
    assert set(mended.requeued) == {waiting.task_id, starting.task_id}
    assert (await registry.record(waiting.task_id)).state is TaskState.QUEUED
    assert (await registry.record(starting.task_id)).epoch == epoch + 1  # its session is fenced
    assert [each.task_id for each in await claim(registry, 2)] == [waiting.task_id, starting.task_id]
    with pytest.raises(StaleAttempt):
        await registry.advance(waiting.task_id, TaskEvent.PARTITION_COMPLETE, attempt=first.attempt)


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


# Reading


async def test_streams_of_many_tasks_are_read_at_once_and_resumed(registry: TaskRegistry) -> None:
    first, second = make_task(), make_task()
    await submit(registry, first)
    await submit(registry, second)
    found = await registry.read_streams({first.task_id: "0", second.task_id: "not an id"}, block_s=0)
    assert set(found) == {first.task_id, second.task_id}
    seen = {task_id: entries[-1].entry_id for task_id, entries in found.items()}
    assert await registry.read_streams(seen, block_s=0) == {}
    reading = asyncio.ensure_future(registry.read_streams(seen, block_s=LIMIT_S))
    await registry.cancel(second.task_id)
    assert [entry.kind for entry in (await reading)[second.task_id]] == ["end"]


async def test_a_blocking_read_ends_empty_when_nothing_comes(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    (entry,) = await stream(registry, task.task_id)
    assert await registry.read_streams({task.task_id: entry.entry_id}, block_s=0.02) == {}
    assert await registry.read_streams({}, block_s=1) == {}


async def test_tasks_are_listed_newest_first_page_by_page(registry: TaskRegistry) -> None:
    tasks = [make_task(owner="anna" if number % 2 else "bert") for number in range(7)]
    for task in tasks:
        await submit(registry, task)

    async def listed(owner: str | None, limit: int) -> list[TaskId]:
        found, cursor = [], None
        while True:
            page = await registry.list_tasks(owner=owner, states=frozenset(), model_id=None, limit=limit, cursor=cursor)
            assert len(page.records) <= limit
            found += [record.task.task_id for record in page.records]
            cursor = page.next_cursor
            if cursor is None:
                return found

    newest_first = [task.task_id for task in reversed(tasks)]
    assert await listed(None, 3) == newest_first
    assert await listed(None, 7) == newest_first
    assert await listed("anna", 2) == newest_first[1::2]
    assert await listed("nobody", 2) == []


async def test_tasks_are_listed_by_state_and_model(registry: TaskRegistry) -> None:
    foreign, queued, cancelled = make_task(owner="bert"), make_task(), make_task()
    other = make_task(model_id=ModelId("other"))
    for task in (foreign, queued, cancelled, other):
        await submit(registry, task)
    await registry.cancel(cancelled.task_id)
    states = frozenset({TaskState.QUEUED, TaskState.COMPUTING})
    page = await registry.list_tasks(owner=None, states=states, model_id=MODEL, limit=1, cursor=None)
    assert [record.task.task_id for record in page.records] == [queued.task_id]
    assert page.records[0].task.prompt_ids == ()
    page = await registry.list_tasks(owner="bert", states=states, model_id=None, limit=9, cursor=None)
    assert [record.task.task_id for record in page.records] == [foreign.task_id]
    for cursor in ("", "%%", "bm90IG91cnM", "ünd"):
        with pytest.raises(InvalidCursor):
            await registry.list_tasks(owner=None, states=frozenset(), model_id=None, limit=5, cursor=cursor)


async def test_a_durable_registry_is_ready(registry: TaskRegistry) -> None:
    await registry.ping()
    await registry.ping()
