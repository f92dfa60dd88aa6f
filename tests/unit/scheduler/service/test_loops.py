"""Leases, reconciling, preloading."""

import asyncio

from services.scheduler.service.following import RENEW_EVERY_S, Follower
from services.scheduler.service.preloading import Preloader
from shared.domain.errors import PeerUnavailable
from shared.domain.ids import Attempt, ModelId
from shared.domain.plan import Seating
from shared.domain.task import Verification
from shared.domain.task_state import TaskEvent, TaskState
from shared.events.catalogue import TaskFailed
from tests.fakes.scheduler_peers import make_node
from tests.fakes.tasks import GROUP, MODEL, make_task
from tests.unit.scheduler.service.conftest import Cluster


async def test_leases_are_renewed_until_the_task_ends(cluster: Cluster) -> None:
    task = make_task()
    await cluster.submit(task)
    await cluster.dispatcher.run_once()
    for _ in range(5):
        renewing = asyncio.ensure_future(cluster.follower.renew_once())
        await cluster.clock.advance(RENEW_EVERY_S)
        await renewing
        await cluster.reconciler.reconcile()
    record = await cluster.registry.record(task.task_id)
    assert (record.state, record.attempt) == (TaskState.COMPUTING, 1)
    await cluster.registry.cancel(task.task_id)
    renewing = asyncio.ensure_future(cluster.follower.renew_once())
    await cluster.clock.advance(RENEW_EVERY_S)
    await renewing
    assert cluster.follower.followed == frozenset()


async def test_a_running_task_of_a_stopped_replica_is_adopted_and_followed(cluster: Cluster) -> None:
    task = make_task()
    await cluster.submit(task)
    await cluster.registry.claim(GROUP, 1, owner="replica-0", lease_s=10, plan_id="plan-1")
    epoch, _, _ = await cluster.registry.open_session(
        task.task_id, attempt=Attempt(1), plan_id="plan-1", coordinator="coordinator-1", lease_s=3.0
    )
    stopped = Follower(registry=cluster.registry, clock=cluster.clock, owner="replica-0")
    stopped.follow([task.task_id])
    await cluster.registry.advance(task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=epoch)
    await stopped.give_up()
    await cluster.reconciler.reconcile()
    record = await cluster.registry.record(task.task_id)
    assert (record.state, record.attempt, record.epoch) == (TaskState.COMPUTING, 2, epoch)
    assert cluster.follower.followed == {task.task_id}


async def test_a_running_task_past_its_deadline_is_stopped_at_the_coordinator(cluster: Cluster) -> None:
    task = make_task(deadline_s=5.0)
    await cluster.submit(task)
    await cluster.dispatcher.run_once()
    cluster.coordinator.error = PeerUnavailable("the coordinator does not answer")
    await cluster.clock.advance(6.0)
    await cluster.reconciler.reconcile()
    assert cluster.coordinator.cancelled == [task.task_id]
    assert [event.error for event in cluster.events.of(TaskFailed)] == ["deadline_exceeded"]
    assert cluster.follower.followed == frozenset()


async def test_models_are_placed_once_the_nodes_have_settled_and_again_when_they_change(cluster: Cluster) -> None:
    preloader = Preloader(
        partitioner=cluster.partitioner,
        coordinator=cluster.coordinator,
        clock=cluster.clock,
        models=[MODEL, ModelId("other")],
        seating=Seating(),
    )
    cluster.coordinator.nodes = [make_node("a")]
    await preloader.look()
    cluster.coordinator.nodes = [make_node("a"), make_node("b")]
    await preloader.look()
    assert cluster.coordinator.placed == []  # still joining
    for _ in range(3):
        await preloader.look()
    assert [(plan.model_id, plan.plan_id) for plan in cluster.coordinator.placed] == [
        (MODEL, "plan-a-b"),
        (ModelId("other"), "plan-a-b"),
    ]
    cluster.coordinator.nodes = [make_node("a"), make_node("b", boot_id="boot-2")]
    await preloader.look()
    await preloader.look()
    assert len(cluster.coordinator.placed) == 4


async def test_all_pipelines_are_placed_and_again_when_there_are_others(cluster: Cluster) -> None:
    preloader = Preloader(
        partitioner=cluster.partitioner,
        coordinator=cluster.coordinator,
        clock=cluster.clock,
        models=[MODEL],
        seating=Seating(),
    )
    for num_pipelines, placed in ((1, ["plan-a-b"]), (2, ["plan-a-b", "plan-a", "plan-b"])):
        cluster.partitioner.num_pipelines = num_pipelines
        for _ in range(3):
            await preloader.look()
        assert [plan.plan_id for plan in cluster.coordinator.placed] == placed


async def test_a_model_that_cannot_be_placed_yet_is_tried_again(cluster: Cluster) -> None:
    preloader = Preloader(
        partitioner=cluster.partitioner,
        coordinator=cluster.coordinator,
        clock=cluster.clock,
        models=[MODEL],
        seating=Seating(Verification.AUDIT, 1),
    )
    cluster.partitioner.min_nodes = 3
    for _ in range(3):
        await preloader.look()
    cluster.partitioner.min_nodes = 2
    await preloader.look()
    (placed,) = cluster.coordinator.placed
    assert len(placed.lanes) == 2
