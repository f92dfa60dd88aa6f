"""Taking tasks in and letting them go."""

from typing import Any

import pytest

from services.scheduler.service.scheduling import AWAY_S, JOINING_S
from shared.contracts.scheduler import QueueState, SubmitTask
from shared.domain.errors import ModelNotFound, NoCapacity, PeerUnavailable, VerificationUnavailable
from shared.domain.ids import ModelId
from shared.domain.plan import Seating
from shared.domain.task import Verification
from shared.domain.task_state import TaskState
from shared.events.catalogue import TaskCancelled, TaskEnqueued, TaskSubmitted
from tests.fakes.scheduler_peers import make_node
from tests.fakes.tasks import make_task
from tests.unit.scheduler.service.conftest import Cluster


async def test_a_submitted_task_is_queued_and_told(cluster: Cluster) -> None:
    first, second = make_task(priority=3), make_task()
    reply = await cluster.scheduling.submit_task(SubmitTask(task=first))
    assert (reply.task_id, reply.state, reply.created) == (first.task_id, TaskState.QUEUED, True)
    await cluster.submit(second)
    assert cluster.events.of(TaskSubmitted) == [TaskSubmitted(first.task_id, 3), TaskSubmitted(second.task_id, 0)]
    assert [event.queue_size for event in cluster.events.of(TaskEnqueued)] == [1, 2]
    assert await cluster.scheduling.queue_state() == QueueState(
        depth=2, oldest_age_s=0.0, by_priority={3: 1, 0: 1}, running=0
    )


async def test_a_repeated_submission_is_not_told_again(cluster: Cluster) -> None:
    wanted = SubmitTask(task=make_task(), idempotency_key="k", payload_hash="h")
    await cluster.scheduling.submit_task(wanted)
    again = await cluster.scheduling.submit_task(SubmitTask(task=make_task(), idempotency_key="k", payload_hash="h"))
    assert (again.task_id, again.created) == (wanted.task.task_id, False)
    assert len(cluster.events.of(TaskSubmitted)) == 1


async def test_an_unknown_model_is_refused_until_the_catalogue_has_it(cluster: Cluster) -> None:
    task = make_task(model_id=ModelId("new"))
    with pytest.raises(ModelNotFound):
        await cluster.submit(task)
    cluster.partitioner.models.add(ModelId("new"))
    await cluster.submit(task)


async def test_the_catalogue_is_asked_rarely(cluster: Cluster) -> None:
    await cluster.submit(*(make_task() for _ in range(5)))
    assert cluster.partitioner.asked_for_models == 1


AUDITED = {"verification": Verification.AUDIT, "max_byzantine": 1}


async def test_verification_that_the_nodes_cannot_give_is_refused_and_never_lowered(cluster: Cluster) -> None:
    cluster.coordinator.nodes = [make_node("a")]
    await cluster.clock.advance(JOINING_S)
    with pytest.raises(VerificationUnavailable):
        await cluster.submit(make_task(**AUDITED))
    assert (await cluster.registry.queue()).depth == 0
    cluster.coordinator.nodes = [make_node("a"), make_node("b", used=16)]
    await cluster.submit(make_task(**AUDITED))  # taken slots are no reason: it waits for them
    assert cluster.partitioner.asked[-1] == Seating(Verification.AUDIT, 1)


async def test_while_all_may_be_starting_clients_are_told_to_ask_again(cluster: Cluster) -> None:
    cluster.coordinator.nodes = [make_node("a")]
    with pytest.raises(NoCapacity, match=r"2 lanes need 2 nodes, 1 are ready; nodes may still be joining"):
        await cluster.submit(make_task(**AUDITED))
    cluster.coordinator.nodes.append(make_node("b"))
    await cluster.submit(make_task(**AUDITED))


async def test_for_an_answer_that_is_held_back_fresh_nodes_are_asked_for_as_well(cluster: Cluster) -> None:
    await cluster.clock.advance(JOINING_S)
    cluster.coordinator.nodes = [make_node("a"), make_node("b")]
    await cluster.submit(make_task(**AUDITED))
    with pytest.raises(VerificationUnavailable, match="3 nodes"):
        await cluster.submit(make_task(**AUDITED, hold=True))
    cluster.coordinator.nodes.append(make_node("c"))
    await cluster.submit(make_task(**AUDITED, hold=True))
    assert cluster.partitioner.asked[-1] == Seating(Verification.AUDIT, 1, hold=True)


async def test_nodes_that_were_ready_a_moment_ago_count_for_what_can_be_verified(cluster: Cluster) -> None:
    await cluster.clock.advance(JOINING_S)
    cluster.coordinator.nodes = [make_node("a"), make_node("b")]
    await cluster.submit(make_task(**AUDITED))
    cluster.coordinator.nodes = [make_node("a")]  # the coordinator was started anew: b has not registered yet
    await cluster.clock.advance(3.0)
    await cluster.submit(make_task(**AUDITED))
    await cluster.clock.advance(3.0)
    with pytest.raises(NoCapacity, match="nodes may still be joining"):
        await cluster.submit(make_task(**AUDITED))
    await cluster.clock.advance(JOINING_S)
    with pytest.raises(VerificationUnavailable):
        await cluster.submit(make_task(**AUDITED))


async def test_nodes_that_are_late_with_a_word_count_for_what_can_be_verified(cluster: Cluster) -> None:
    await cluster.clock.advance(JOINING_S)
    cluster.coordinator.nodes, cluster.coordinator.suspects = [make_node("a")], [make_node("b")]
    await cluster.submit(make_task(**AUDITED))  # waits until b is ready


async def test_the_nodes_are_not_asked_for_every_verified_task(cluster: Cluster) -> None:
    cluster.coordinator.nodes = [make_node("a"), make_node("b")]
    await cluster.submit(*(make_task(**AUDITED) for _ in range(5)))
    assert len(cluster.partitioner.asked) == 1


@pytest.mark.parametrize("who", ["partitioner", "coordinator"])
@pytest.mark.parametrize("terms", [{}, AUDITED])
async def test_what_was_possible_a_moment_ago_is_accepted_while_the_peers_that_know_are_away(
    cluster: Cluster, who: str, terms: dict[str, Any]
) -> None:
    def wanted(**other: object) -> SubmitTask:
        return SubmitTask(task=make_task(**{**terms, **other}), require_capacity=not terms)

    cluster.coordinator.nodes = [make_node(name) for name in "abc"]
    for submission in (wanted(), wanted(verification=Verification.AUDIT, max_byzantine=1, hold=True)):
        await cluster.scheduling.submit_task(submission)
    getattr(cluster, who).error = PeerUnavailable(f"the {who} does not answer")
    await cluster.clock.advance(AWAY_S)
    await cluster.scheduling.submit_task(wanted())
    await cluster.clock.advance(1.0)
    with pytest.raises(PeerUnavailable):
        await cluster.scheduling.submit_task(wanted())
    assert (await cluster.registry.queue()).depth == 3


@pytest.mark.parametrize("terms", [{}, AUDITED])
async def test_what_has_become_impossible_since_is_refused_while_the_partitioner_is_away(
    cluster: Cluster, terms: dict[str, Any]
) -> None:
    wanted = [SubmitTask(task=make_task(**terms), require_capacity=not terms) for _ in range(3)]
    cluster.coordinator.nodes = [make_node("a"), make_node("b")]
    await cluster.scheduling.submit_task(wanted[0])
    await cluster.clock.advance(7.0)
    cluster.coordinator.nodes = [make_node("a")]
    cluster.partitioner.min_nodes = 2
    with pytest.raises(NoCapacity):
        await cluster.scheduling.submit_task(wanted[1])
    cluster.partitioner.error = PeerUnavailable("the partitioner does not answer")
    with pytest.raises(PeerUnavailable):
        await cluster.scheduling.submit_task(wanted[2])


async def test_a_model_that_was_not_known_before_is_refused_while_the_partitioner_is_away(cluster: Cluster) -> None:
    await cluster.submit(make_task())
    cluster.partitioner.error = PeerUnavailable("the partitioner does not answer")
    await cluster.clock.advance(60.0)
    await cluster.submit(make_task())
    with pytest.raises(PeerUnavailable):
        await cluster.submit(make_task(model_id=ModelId("new")))


async def test_with_required_capacity_a_task_without_a_plan_is_refused(cluster: Cluster) -> None:
    wanted = SubmitTask(task=make_task(), require_capacity=True)
    cluster.partitioner.min_nodes = 3
    with pytest.raises(NoCapacity):
        await cluster.scheduling.submit_task(wanted)
    cluster.coordinator.nodes.clear()
    with pytest.raises(NoCapacity, match="no node is ready"):
        await cluster.scheduling.submit_task(wanted)
    assert (await cluster.registry.queue()).depth == 0


async def test_cancelling_a_running_task_reaches_the_coordinator(cluster: Cluster) -> None:
    task = make_task()
    await cluster.submit(task)
    await cluster.dispatcher.run_once()
    await cluster.clock.advance(2.0)
    reply = await cluster.scheduling.cancel_task(task.task_id)
    assert (reply.state, reply.accepted) == (TaskState.CANCELLED, True)
    assert cluster.coordinator.cancelled == [task.task_id]
    (told,) = cluster.events.of(TaskCancelled)
    assert told.latency_ms == pytest.approx(2_000)
    assert not (await cluster.scheduling.cancel_task(task.task_id)).accepted
    assert len(cluster.coordinator.cancelled) == 1


async def test_a_coordinator_that_is_away_does_not_keep_a_task_from_being_cancelled(cluster: Cluster) -> None:
    task = make_task()
    await cluster.submit(task)
    cluster.coordinator.error = PeerUnavailable("the coordinator does not answer")
    assert (await cluster.scheduling.cancel_task(task.task_id)).accepted


async def test_an_attached_task_ends_without_renewal(cluster: Cluster) -> None:
    kept, lost = make_task(), make_task()
    for task in (kept, lost):
        await cluster.scheduling.submit_task(SubmitTask(task=task, attached=True))
    await cluster.clock.advance(10.0)
    await cluster.scheduling.renew_attachments([kept.task_id])
    await cluster.clock.advance(10.0)
    await cluster.reconciler.reconcile()
    assert await cluster.state(kept.task_id) is TaskState.QUEUED
    assert await cluster.state(lost.task_id) is TaskState.CANCELLED
    assert [event.task_id for event in cluster.events.of(TaskCancelled)] == [lost.task_id]
