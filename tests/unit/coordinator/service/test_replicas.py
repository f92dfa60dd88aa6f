"""Several coordinators on one registry: each session is one's, and another's when that one falls silent."""

from collections.abc import AsyncIterator

import pytest

from services.coordinator.domain.replica import LEASE_S, look_in_s
from shared.contracts.messages import Heartbeat
from shared.domain.errors import Forbidden, NoCapacity, NodeNotFound, RegistryUnavailable, StaleEpoch
from shared.domain.ids import NodeId
from shared.domain.session import NodeState
from shared.domain.task_state import TaskState
from shared.registry.base import Commit
from tests.fakes.identities import N1
from tests.fakes.tasks import make_task, make_tokens
from tests.unit.coordinator.harness import Coordinator


@pytest.fixture
async def other(coordinator: Coordinator) -> AsyncIterator[Coordinator]:
    """Has workers of its own: whatever passes between the two passes through the registry."""
    running = await Coordinator(clock=coordinator.clock, registry=coordinator.registry, boot_id="run-2").start()
    yield running
    await running.stop()


def state_of(coordinator: Coordinator, node_id: NodeId) -> NodeState:
    member = coordinator.members.find(node_id)
    assert member is not None
    return member.state


async def together(seconds: float, *coordinators: Coordinator) -> None:
    """Move their common clock; the nodes of all send heartbeats."""
    first, *others = coordinators
    for _ in range(round(seconds / 0.25)):
        await first.advance(0.25)
        for each in others:
            for node_id in each.tokens:
                await each.beat(node_id)
            await each.settle()


async def test_a_session_stays_where_it_was_opened(coordinator: Coordinator, other: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    await together(10, coordinator, other)
    assert coordinator.has_session(task)
    assert not other.has_session(task)


async def test_another_takes_over_within_three_seconds_and_the_first_is_fenced(
    coordinator: Coordinator, other: Coordinator
) -> None:
    task = make_task(max_tokens=4)
    session = await coordinator.open(task)
    await coordinator.draft(task, 10)
    old = session.epoch
    await together(2, coordinator, other)
    await coordinator.stop()  # it renews nothing any more, and forgets nothing
    await together(LEASE_S + 0.25, other)
    assert other.session(task).epoch == old + 2
    late = Commit(task.task_id, old, 1, make_tokens(99))
    assert await coordinator.registry.commit([late]) == (None,)
    await other.draft(task, 11, 12, 13)
    assert await other.token_ids(task) == [10, 11, 12, 13]
    assert await other.state(task) is TaskState.COMPLETED


async def test_who_slept_too_long_lets_its_session_go(coordinator: Coordinator, other: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    await coordinator.registry.hold_sessions(
        [task.task_id], coordinator="run-1", lease_s=0.0, adopt=0
    )  # as if it had not come to renew it
    await other.registry.hold_sessions([], coordinator="run-2", lease_s=LEASE_S, adopt=1)
    await together(1.5, coordinator)
    assert not coordinator.has_session(task)
    with pytest.raises(StaleEpoch):
        await coordinator.registry.open_session(
            task.task_id, attempt=None, plan_id="p", coordinator="run-1", lease_s=LEASE_S
        )


async def test_who_lost_a_session_stops_the_seats_of_its_own_epoch_only(
    coordinator: Coordinator, other: Coordinator
) -> None:
    task = make_task()
    session = await coordinator.open(task)
    old = session.epoch
    await coordinator.registry.hold_sessions([task.task_id], coordinator="run-1", lease_s=0.0, adopt=0)
    await other.registry.hold_sessions([], coordinator="run-2", lease_s=LEASE_S, adopt=1)
    await together(1.5, coordinator)
    assert {stop.epoch for stop in coordinator.workers[N1].stops()} == {old}


async def test_a_coordinator_that_stops_gives_its_sessions_away_at_once(
    coordinator: Coordinator, other: Coordinator
) -> None:
    task = make_task()
    await coordinator.open(task)
    await together(2, coordinator, other)
    held = coordinator.sessions.held()
    await coordinator.stop()
    await coordinator.sessions.give_up(held)
    await together(1.25, other)
    assert other.has_session(task)


async def test_slots_that_sessions_of_others_hold_are_not_given_twice(coordinator: Coordinator) -> None:
    """Each node has two slots, and says that another coordinator's sessions hold one."""
    task = make_task()
    await coordinator.open(task)
    ref = coordinator.workers[N1].assignments()[-1].stage_ref
    await coordinator.messages.handle(
        coordinator.tokens[N1], Heartbeat(boot_id="boot-1", stages=(ref,), slots_elsewhere=(1,))
    )
    assert coordinator.members.nodes().nodes[0].slots_used == 2
    with pytest.raises(NoCapacity):
        await coordinator.open(make_task())
    await coordinator.messages.handle(coordinator.tokens[N1], Heartbeat(boot_id="boot-1", stages=(ref,)))
    assert coordinator.members.nodes().nodes[0].slots_used == 1
    await coordinator.open(make_task())


async def test_whom_one_evicts_all_do_without_and_refuse(coordinator: Coordinator) -> None:
    other = await Coordinator(clock=coordinator.clock, standings=coordinator.standings, boot_id="run-2").start()
    await coordinator.members.evict(N1, "ev-1", "lied")
    await other.members.hear_of_others()
    assert other.members.find(N1) is None
    with pytest.raises(Forbidden):
        await other.join(N1)
    await coordinator.members.reinstate(N1)
    await other.members.hear_of_others()
    await other.join(N1)
    await other.stop()


async def test_what_could_not_be_saved_yet_is_not_forgotten_by_hearing_of_others(coordinator: Coordinator) -> None:
    coordinator.standings.is_away = True
    await coordinator.members.set_aside(N1, "odd")
    coordinator.standings.is_away = False
    await coordinator.members.hear_of_others()
    member = coordinator.members.find(N1)
    assert member is not None
    assert member.state is NodeState.QUARANTINED


async def test_an_eviction_by_one_outlives_a_quarantine_by_another(coordinator: Coordinator) -> None:
    other = await Coordinator(clock=coordinator.clock, standings=coordinator.standings, boot_id="run-2").start()
    await coordinator.members.evict(N1, "ev-1", "lied")
    await other.members.quarantine(N1, "odd", until_reinstated=True)  # it has not heard of the other yet
    for each in (other, coordinator):
        await each.members.hear_of_others()
        with pytest.raises(Forbidden):
            await each.join(N1)
    assert [standing.is_evicted for standing in await coordinator.standings.all()] == [True]
    await other.stop()


async def test_who_reinstates_from_a_quarantine_does_not_end_an_eviction_by_another(coordinator: Coordinator) -> None:
    other = await Coordinator(clock=coordinator.clock, standings=coordinator.standings, boot_id="run-2").start()
    await other.members.quarantine(N1, "odd", until_reinstated=True)
    await coordinator.members.evict(N1, "ev-1", "lied")
    await other.members.reinstate(N1)  # it has not heard of the eviction yet
    await other.members.hear_of_others()
    with pytest.raises(Forbidden):
        await other.join(N1)
    await other.stop()


async def test_whom_one_drains_gets_no_work_from_any_until_another_resumes_it(coordinator: Coordinator) -> None:
    other = await Coordinator(clock=coordinator.clock, standings=coordinator.standings, boot_id="run-2").start()
    await coordinator.members.drain(N1)
    assert state_of(coordinator, N1) is NodeState.DRAINING
    await other.members.hear_of_others()
    assert state_of(other, N1) is NodeState.DRAINING
    later = await Coordinator(clock=coordinator.clock, standings=coordinator.standings, boot_id="run-3").start()
    assert state_of(later, N1) is NodeState.DRAINING  # from its registration on
    await other.members.resume(N1)
    await coordinator.members.hear_of_others()
    assert state_of(coordinator, N1) is state_of(other, N1) is NodeState.READY
    await other.stop()
    await later.stop()


async def test_a_drained_node_that_is_gone_can_be_resumed(coordinator: Coordinator) -> None:
    await coordinator.members.drain(N1)
    await coordinator.lose(N1)
    await coordinator.advance(3)
    assert coordinator.members.find(N1) is None
    await coordinator.members.resume(N1)
    with pytest.raises(NodeNotFound):
        await coordinator.members.resume(N1)
    await coordinator.join(N1)
    assert state_of(coordinator, N1) is NodeState.READY


async def test_a_drain_that_cannot_be_kept_changes_nothing(coordinator: Coordinator) -> None:
    coordinator.standings.is_away = True
    with pytest.raises(RegistryUnavailable):
        await coordinator.members.drain(N1)
    assert state_of(coordinator, N1) is NodeState.READY


def test_the_next_look_is_when_the_first_lease_lapses() -> None:
    assert look_in_s(None) == 1.0
    assert look_in_s(2.5) == 1.0
    assert 0.2 < look_in_s(0.2) < 0.3
