"""What every task registry promises of the way in: submission, order of the queue, claims."""

import asyncio

import pytest

from shared.domain.errors import IdempotencyKeyReused, QueueFull, QuotaExceeded, TaskNotFound
from shared.domain.ids import Attempt, ModelId
from shared.domain.task import InferenceTask, SamplerParams, StopRules, TaskGroup, Verification
from shared.domain.task_state import TaskEvent, TaskState
from shared.registry.base import Claim, Submission, TaskRegistry
from tests.contract.registry_steps import LIMIT_S, claim, computing, stream, submit
from tests.fakes.tasks import GROUP, make_task


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
