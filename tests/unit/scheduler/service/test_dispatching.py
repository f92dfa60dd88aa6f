"""From the queue to a session."""

import asyncio
import itertools
from collections import Counter
from typing import Any

import pytest

from shared.domain.errors import (
    ButterflyError,
    ContextLengthExceeded,
    NoCapacity,
    PeerUnavailable,
    RegistryUnavailable,
    StaleAttempt,
)
from shared.domain.ids import ModelId, TaskId
from shared.domain.task import Verification
from shared.domain.task_state import TaskState
from shared.events.catalogue import TaskDispatched, TaskDispatching, TaskFailed
from shared.registry.base import Claim
from tests.fakes.scheduler_peers import make_node
from tests.fakes.tasks import GROUP, MODEL, make_task
from tests.unit.scheduler.service.conftest import Cluster


async def test_queued_tasks_get_sessions_by_a_plan_over_the_ready_nodes(cluster: Cluster) -> None:
    tasks = [make_task() for _ in range(9)]  # more than two batches
    await cluster.submit(*tasks)
    await cluster.dispatcher.run_once()
    assert [each.task_id for each in cluster.coordinator.opened] == [task.task_id for task in tasks]
    (plan_id,) = {each.plan.plan_id for each in cluster.coordinator.opened}
    record = await cluster.registry.record(tasks[0].task_id)
    assert (record.state, record.plan_id, record.attempt) == (TaskState.COMPUTING, plan_id, 1)
    assert [event.task_id for event in cluster.events.of(TaskDispatching)] == [task.task_id for task in tasks]
    assert len(cluster.events.of(TaskDispatched)) == len(tasks)
    assert cluster.follower.followed == {task.task_id for task in tasks}


async def test_no_more_is_claimed_than_has_slots(cluster: Cluster) -> None:
    cluster.coordinator.nodes = [make_node("a", slots=8), make_node("b", slots=8, used=6)]
    tasks = [make_task() for _ in range(3)]
    await cluster.submit(*tasks)
    await cluster.dispatcher.run_once()
    assert len(cluster.coordinator.opened) == 2
    assert await cluster.state(tasks[2].task_id) is TaskState.QUEUED
    cluster.coordinator.nodes = [make_node("a", slots=8), make_node("b", slots=8, used=8)]
    await cluster.registry.cancel(tasks[0].task_id)  # nudges
    await cluster.dispatcher.run_once()
    assert cluster.dispatcher.waiting == {GROUP: "every slot is taken"}
    assert (await cluster.registry.record(tasks[2].task_id)).attempt == 0


async def test_sessions_at_once_are_spread_over_the_pipelines(cluster: Cluster) -> None:
    cluster.partitioner.num_pipelines = 2
    tasks = [make_task() for _ in range(6)]
    await cluster.submit(*tasks)
    await cluster.dispatcher.run_once()
    plans = Counter(each.plan.plan_id for each in cluster.coordinator.opened)
    assert plans == {"plan-a": 4, "plan-b": 2}  # batches of four; the fake's nodes never show what runs on them
    for each in cluster.coordinator.opened:
        assert (await cluster.registry.record(each.task_id)).plan_id == each.plan.plan_id


async def test_what_was_claimed_before_the_registry_failed_gets_its_session(cluster: Cluster) -> None:
    cluster.partitioner.num_pipelines = 2
    await cluster.submit(*(make_task() for _ in range(4)))
    claim = cluster.registry.claim
    claims = itertools.count()

    async def claim_once(*arguments: Any, **named: Any) -> tuple[Claim, ...]:  # as the registry's
        if next(claims) == 1:
            raise RegistryUnavailable("the registry is away")
        return await claim(*arguments, **named)

    cluster.registry.claim = claim_once  # type: ignore[method-assign]
    with pytest.raises(RegistryUnavailable):
        await cluster.dispatcher.run_once()
    assert {each.task_id for each in cluster.coordinator.opened} == cluster.follower.followed
    assert len(cluster.coordinator.opened) == 2


async def test_models_share_the_slots_of_one_round(cluster: Cluster) -> None:
    cluster.partitioner.models.add(ModelId("other"))
    cluster.coordinator.nodes = [make_node("a", slots=3)]
    await cluster.submit(*(make_task(model_id=model) for model in (MODEL, MODEL, ModelId("other"), ModelId("other"))))
    await cluster.dispatcher.run_once()
    assert len(cluster.coordinator.opened) == 3


@pytest.mark.parametrize(
    "refusal", [NoCapacity("no slot"), PeerUnavailable("the coordinator does not answer"), ButterflyError("oops")]
)
async def test_a_refused_task_goes_back_to_its_place_and_is_tried_again_after_a_pause(
    cluster: Cluster, refusal: ButterflyError
) -> None:
    first, second = make_task(), make_task()
    await cluster.submit(first, second)
    cluster.coordinator.refuse = lambda task_id: refusal if task_id == first.task_id else None
    await cluster.dispatcher.run_once()
    assert await cluster.state(first.task_id) is TaskState.QUEUED
    assert await cluster.state(second.task_id) is TaskState.COMPUTING
    assert cluster.follower.followed == {second.task_id}
    assert cluster.dispatcher.waiting == {GROUP: refusal.message}

    cluster.coordinator.refuse = lambda _: None
    await cluster.submit(make_task())
    await cluster.dispatcher.run_once()
    assert await cluster.state(first.task_id) is TaskState.QUEUED  # still paused: no hot loop
    await cluster.clock.advance(1.0)
    await cluster.submit(make_task())
    await cluster.dispatcher.run_once()
    assert await cluster.state(first.task_id) is TaskState.COMPUTING
    assert cluster.dispatcher.waiting == {}


async def test_a_task_is_not_failed_for_lack_of_capacity_before_its_deadline(cluster: Cluster) -> None:
    task = make_task(deadline_s=60.0)
    await cluster.submit(task)
    cluster.coordinator.refuse = lambda _: NoCapacity("no slot")
    for _ in range(20):
        await cluster.submit(make_task(model_id=MODEL))  # a nudge
        await cluster.dispatcher.run_once()
        await cluster.clock.advance(1.0)
        await cluster.reconciler.reconcile()
    assert await cluster.state(task.task_id) is TaskState.QUEUED
    assert (await cluster.registry.record(task.task_id)).attempt >= 10


@pytest.mark.parametrize("cause", ["no nodes", "no plan", "no coordinator", "no partitioner"])
async def test_tasks_that_cannot_be_planned_stay_queued_with_the_reason(cluster: Cluster, cause: str) -> None:
    task = make_task(deadline_s=30.0)
    await cluster.submit(task)
    match cause:
        case "no nodes":
            cluster.coordinator.nodes.clear()
        case "no plan":
            cluster.partitioner.min_nodes = 3
        case "no coordinator":
            cluster.coordinator.error = PeerUnavailable("the coordinator does not answer")
        case _:
            cluster.partitioner.error = PeerUnavailable("the partitioner does not answer")
    await cluster.dispatcher.run_once()
    record = await cluster.registry.record(task.task_id)
    assert (record.state, record.attempt) == (TaskState.QUEUED, 0)
    reason = cluster.dispatcher.waiting[GROUP]
    await cluster.clock.advance(31.0)
    await cluster.reconciler.reconcile()
    record = await cluster.registry.record(task.task_id)
    assert (record.state, record.error_code) == (TaskState.FAILED, "deadline_exceeded")
    assert record.error.endswith(reason)
    assert [(event.error, event.latency_ms) for event in cluster.events.of(TaskFailed)] == [
        ("deadline_exceeded", 31_000)
    ]


async def test_a_task_that_can_never_run_fails_at_once(cluster: Cluster) -> None:
    task = make_task()
    await cluster.submit(task)
    cluster.coordinator.refuse = lambda _: ContextLengthExceeded("too long for every node")
    await cluster.dispatcher.run_once()
    record = await cluster.registry.record(task.task_id)
    assert (record.state, record.error_code) == (TaskState.FAILED, "context_length_exceeded")
    assert [event.error for event in cluster.events.of(TaskFailed)] == ["context_length_exceeded"]
    assert cluster.follower.followed == frozenset()


async def test_a_task_cancelled_while_it_is_dispatched_stays_cancelled(cluster: Cluster) -> None:
    task = make_task()
    await cluster.submit(task)
    cancelling: list[asyncio.Task[object]] = []

    def cancel_meanwhile(task_id: TaskId) -> ButterflyError:
        cancelling.append(asyncio.ensure_future(cluster.registry.cancel(task_id)))
        return StaleAttempt("it has gone on")

    cluster.coordinator.refuse = cancel_meanwhile
    await cluster.dispatcher.run_once()
    await asyncio.gather(*cancelling)
    assert await cluster.state(task.task_id) is TaskState.CANCELLED


async def test_a_session_whose_answer_was_lost_is_followed_on(cluster: Cluster) -> None:
    task = make_task()
    await cluster.submit(task)
    open_session = cluster.coordinator.open_session

    async def answer_lost(wanted: object) -> None:
        await open_session(wanted)  # type: ignore[arg-type]
        raise PeerUnavailable("the coordinator did not answer in time")

    cluster.coordinator.open_session = answer_lost  # type: ignore[method-assign]
    await cluster.dispatcher.run_once()
    assert await cluster.state(task.task_id) is TaskState.COMPUTING
    assert cluster.follower.followed == {task.task_id}


async def test_a_draining_scheduler_claims_nothing_more(cluster: Cluster) -> None:
    task = make_task()
    await cluster.submit(task)
    await cluster.dispatcher.drain()
    running = asyncio.ensure_future(cluster.dispatcher.run_once())
    await cluster.clock.advance(5.0)
    await running
    assert await cluster.state(task.task_id) is TaskState.QUEUED
    assert await cluster.registry.wait_for_work(0.01)  # the nudge is left for the other replicas


async def test_a_task_that_could_not_be_given_back_comes_back_when_its_lease_lapses(cluster: Cluster) -> None:
    task = make_task()
    await cluster.submit(task)
    advance = cluster.registry.advance

    async def away(*_: object, **__: object) -> TaskState:
        raise RegistryUnavailable("the task registry does not answer")

    cluster.coordinator.refuse = lambda _: NoCapacity("no slot")
    cluster.registry.advance = away  # type: ignore[method-assign]
    await cluster.dispatcher.run_once()
    cluster.registry.advance = advance  # type: ignore[method-assign]
    assert cluster.follower.followed == frozenset()
    await cluster.clock.advance(11.0)
    await cluster.reconciler.reconcile()
    assert await cluster.state(task.task_id) is TaskState.QUEUED
    assert cluster.reconciler.mended["requeued"] == 1


async def test_an_unforeseen_error_costs_one_claim_and_leaves_it_to_its_lease(cluster: Cluster) -> None:
    def refuse(task_id: TaskId) -> ButterflyError | None:
        if task_id == first.task_id:
            raise RuntimeError("a mistake of ours")
        return None

    first, second = make_task(), make_task()
    await cluster.submit(first, second)
    cluster.coordinator.refuse = refuse
    await cluster.dispatcher.run_once()
    assert await cluster.state(second.task_id) is TaskState.COMPUTING
    assert cluster.follower.followed == {second.task_id}
    await cluster.clock.advance(11)
    await cluster.reconciler.reconcile()
    assert await cluster.state(first.task_id) is TaskState.QUEUED


async def test_a_busy_model_does_not_starve_another(cluster: Cluster) -> None:
    other = ModelId("other")
    cluster.partitioner.models.add(other)
    tasks = [make_task(model_id=model) for model in (other, other, other, MODEL)]  # "other" comes first by name
    cluster.coordinator.nodes = [make_node("a", slots=1)]
    await cluster.submit(*tasks)
    for _ in range(2):
        await cluster.dispatcher.run_once()
        await cluster.registry.cancel(cluster.coordinator.opened[-1].task_id)  # its slot is free again
    assert [each.plan.model_id for each in cluster.coordinator.opened] == [other, MODEL]


async def test_tasks_of_each_mode_get_a_plan_with_their_lanes(cluster: Cluster) -> None:
    cluster.coordinator.nodes = [make_node(name) for name in "abc"]
    plain, audited = make_task(), make_task(verification=Verification.AUDIT, max_byzantine=1)
    quorum = make_task(verification=Verification.QUORUM, max_byzantine=1)
    await cluster.submit(plain, audited, quorum)
    await cluster.dispatcher.run_once()
    lanes = {opened.task_id: len(opened.plan.lanes) for opened in cluster.coordinator.opened}
    assert lanes == {plain.task_id: 1, audited.task_id: 2, quorum.task_id: 3}


async def test_a_verified_task_waits_for_nodes_while_others_go_on(cluster: Cluster) -> None:
    cluster.coordinator.nodes = [make_node("a"), make_node("b")]
    audited, plain = make_task(verification=Verification.AUDIT, max_byzantine=1), make_task()
    await cluster.submit(audited, plain)
    cluster.coordinator.nodes = [make_node("a")]
    await cluster.dispatcher.run_once()
    assert await cluster.state(plain.task_id) is TaskState.COMPUTING
    assert await cluster.state(audited.task_id) is TaskState.QUEUED
    assert "2 lanes" in cluster.dispatcher.waiting[audited.group]
