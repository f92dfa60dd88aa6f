"""Sessions that lose a seat: they go on elsewhere with the same tokens, or fail with a reason."""

import pytest

from services.coordinator.domain.faults import AWAY_S, GENERATION_FAILED, MAX_REASSIGNMENTS, FaultKind
from services.coordinator.domain.replica import LEASE_S
from shared.contracts.messages import Leave, LinkFault, LoadStage, SeatReady, SessionFault, SessionPosition, StageReady
from shared.domain.errors import ButterflyError, CircuitOpen, NoSlotSpace, OutOfMemory, PeerUnavailable
from shared.domain.ids import Epoch, NodeId
from shared.domain.session import SessionPhase
from shared.domain.task import InferenceTask
from shared.domain.task_state import TaskState
from shared.events.catalogue import SessionReassigned, TaskFailed
from tests.fakes.identities import N1, N2, N3, N4
from tests.fakes.partitioner import even_plan
from tests.fakes.tasks import make_task
from tests.unit.coordinator.harness import NODES, Coordinator


def seats(coordinator: Coordinator, task: InferenceTask) -> list[str]:
    return [seat.node_id for seat in coordinator.session(task).seats]


def fault(task: InferenceTask, stage: int, code: str, *, epoch: int = 1) -> SessionFault:
    return SessionFault(
        task_id=task.task_id, epoch=Epoch(epoch), lane=0, stage=stage, error_code=code, error="it broke"
    )


async def test_a_lost_node_is_replaced_and_the_answer_goes_on_from_what_is_committed(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task = make_task(max_tokens=6)
    await coordinator.open(task)
    await coordinator.draft(task, 10, 11)
    await coordinator.lose(N2)
    await coordinator.advance(3)

    session = coordinator.session(task)
    assert (session.phase, session.epoch, seats(coordinator, task)) == (SessionPhase.PREFILLING, 2, [N1, N3, N4])
    order = coordinator.workers[N4].assignments()[-1]
    assert order.prefix_ids == (*task.prompt_ids, 10, 11)
    assert (order.max_tokens, order.num_prompt) == (4, 3)

    await coordinator.draft(task, 12, 13, 14, 15)
    assert await coordinator.state(task) is TaskState.COMPLETED
    assert await coordinator.token_ids(task) == [10, 11, 12, 13, 14, 15]
    assert [(event.epoch, event.reason) for event in coordinator.events.of(SessionReassigned)] == [(2, "gone")]


async def test_living_seats_are_told_to_forget_the_old_epoch(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task = make_task()
    await coordinator.open(task)
    await coordinator.lose(N2)
    await coordinator.advance(3)
    assert [stop.epoch for stop in coordinator.workers[N1].stops()] == [1]


async def test_a_node_that_leaves_is_replaced_at_once(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    await coordinator.messages.handle(coordinator.tokens[N3], Leave(boot_id="boot-1"))
    await coordinator.settle()
    assert seats(coordinator, task) == [N1, N2]


async def test_a_broken_link_moves_the_session_away_from_the_peer_when_there_is_another_node(
    coordinator: Coordinator,
) -> None:
    await coordinator.join(N4)
    task = make_task()
    await coordinator.open(task)
    broken = LinkFault(peer=NodeId(N2), outgoing=True, reason="connection reset")
    await coordinator.messages.handle(coordinator.tokens[N1], broken)
    await coordinator.settle()
    assert (coordinator.session(task).epoch, seats(coordinator, task)) == (2, [N1, N3, N4])


async def test_who_calls_one_link_after_the_other_broken_is_done_without(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task = make_task()
    await coordinator.open(task)
    for peer in (N2, N3):
        broken = LinkFault(peer=NodeId(peer), outgoing=True, reason="I say so")
        await coordinator.messages.handle(coordinator.tokens[N1], broken)
        await coordinator.settle()
    assert (coordinator.session(task).epoch, seats(coordinator, task)) == (3, [N2, N3, N4])


async def test_a_broken_link_between_the_only_nodes_is_tried_again(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    broken = LinkFault(peer=NodeId(N2), outgoing=True, reason="connection reset")
    await coordinator.messages.handle(coordinator.tokens[N1], broken)
    await coordinator.settle()
    assert (coordinator.session(task).epoch, seats(coordinator, task)) == (2, [N1, N2, N3])


async def test_a_link_fault_of_nodes_that_are_no_neighbours_changes_nothing(coordinator: Coordinator) -> None:
    task = make_task()
    session = await coordinator.open(task)
    broken = LinkFault(peer=NodeId(N1), outgoing=True, reason="I say so")
    await coordinator.messages.handle(coordinator.tokens[N2], broken)
    await coordinator.settle()
    assert session.epoch == 1


async def test_a_node_found_dead_while_recovering_is_not_asked_again(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task = make_task()
    await coordinator.open(task)
    await coordinator.lose(N2)  # long before its lease is over
    broken = LinkFault(peer=NodeId(N3), outgoing=False, reason="silent")
    await coordinator.messages.handle(coordinator.tokens[N1], broken)
    await coordinator.settle()
    session = coordinator.session(task)
    assert session.phase is SessionPhase.PREFILLING
    assert N2 not in seats(coordinator, task)


async def test_a_started_anew_node_gives_its_sessions_up(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    await coordinator.draft(task, 10)
    await coordinator.join(N2, boot_id="boot-2")
    await coordinator.settle()
    session = coordinator.session(task)
    assert (session.phase, session.epoch) == (SessionPhase.PREFILLING, 2)
    assert len(coordinator.workers[N2].assignments()) == 1
    await coordinator.draft(task, 11)
    assert await coordinator.token_ids(task) == [10, 11]


async def test_registering_again_within_the_same_run_loses_nothing(coordinator: Coordinator) -> None:
    task = make_task()
    session = await coordinator.open(task)
    await coordinator.join(N2)
    await coordinator.settle()
    assert session.epoch == 1
    assert session.is_running


async def test_without_nodes_a_session_waits_and_goes_on_when_they_come(coordinator: Coordinator) -> None:
    coordinator.partitioner.min_nodes = 3
    task = make_task(max_tokens=3)
    await coordinator.open(task)
    await coordinator.draft(task, 10)
    await coordinator.lose(N2)
    await coordinator.advance(20)
    assert coordinator.session(task).phase is SessionPhase.RECOVERING

    await coordinator.join(N4)
    await coordinator.settle()
    assert coordinator.session(task).phase is SessionPhase.PREFILLING
    await coordinator.draft(task, 11, 12)
    assert await coordinator.token_ids(task) == [10, 11, 12]


async def test_without_nodes_the_task_fails_at_its_deadline(coordinator: Coordinator) -> None:
    coordinator.partitioner.min_nodes = 3
    task = make_task(deadline_s=30.0)
    await coordinator.open(task)
    await coordinator.lose(N2)
    await coordinator.advance(29)
    assert await coordinator.state(task) is TaskState.COMPUTING
    await coordinator.advance(2)
    record = await coordinator.record(task)
    assert (record.state, record.error_code) == (TaskState.FAILED, "deadline_exceeded")
    assert "not enough nodes" in record.error
    assert not coordinator.has_session(task)


async def test_a_partitioner_that_is_away_is_asked_again(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    coordinator.partitioner.is_away = True
    await coordinator.messages.handle(coordinator.tokens[N2], fault(task, 1, "bad_slot"))
    await coordinator.advance(3)
    assert coordinator.session(task).phase is SessionPhase.RECOVERING
    coordinator.partitioner.is_away = False
    await coordinator.advance(2)
    assert coordinator.session(task).phase is SessionPhase.PREFILLING


async def test_a_session_that_shows_no_progress_is_taken_elsewhere(coordinator: Coordinator) -> None:
    task = make_task()
    session = await coordinator.open(task)
    await coordinator.draft(task, 10)
    await coordinator.advance(4.5)
    assert session.epoch == 1
    await coordinator.advance(1.5)
    assert session.epoch == 2


def position(task: InferenceTask, stage: int, rows: int, *, epoch: int = 1) -> SessionPosition:
    return SessionPosition(task_id=task.task_id, epoch=Epoch(epoch), lane=0, stage=stage, rows=rows)


async def test_positions_in_heartbeats_are_progress(coordinator: Coordinator) -> None:
    task = make_task(prompt_ids=tuple(range(40)))
    session = await coordinator.open(task)
    for rows in range(1, 8):
        coordinator.positions[N1] = (position(task, 0, rows),)
        await coordinator.advance(2)
    assert session.epoch == 1
    await coordinator.advance(6)  # the same position again is none
    assert session.epoch == 2


async def test_a_node_behind_which_all_others_wait_is_done_without(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task = make_task(prompt_ids=tuple(range(40)))
    await coordinator.open(task)
    for epoch, waiting in ((1, N3), (2, N4)):
        rows = {N1: 40, N2: 40, waiting: 0}
        for node_id, seen in rows.items():
            stage = seats(coordinator, task).index(node_id)
            coordinator.positions[node_id] = (position(task, stage, seen, epoch=epoch),)
        assert waiting in seats(coordinator, task)
        await coordinator.advance(8)
    assert (coordinator.session(task).epoch, seats(coordinator, task)) == (3, [N1, N3, N4])


async def test_a_session_behind_others_on_busy_nodes_is_not_stalled(coordinator: Coordinator) -> None:
    waiting, busy = make_task(), make_task(max_tokens=40)
    session = await coordinator.open(waiting)
    await coordinator.open(busy)
    for token in range(10):
        await coordinator.draft(busy, token)
        await coordinator.advance(2)
    assert session.epoch == 1


async def test_a_seat_without_memory_is_given_to_another_node_and_not_asked_again(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    coordinator.workers[N2].refusals = [OutOfMemory("4 GB missing")]
    task = make_task()
    await coordinator.open(task)
    assert seats(coordinator, task) == [N1, N3, N4]
    await coordinator.messages.handle(coordinator.tokens[N4], fault(task, 2, "bad_slot", epoch=2))
    await coordinator.settle()
    assert (coordinator.session(task).epoch, seats(coordinator, task)) == (3, [N1, N3, N4])
    assert coordinator.members.nodes().nodes[1].state == "ready"  # for other tasks


async def test_a_failed_self_test_reported_late_excludes_the_node(coordinator: Coordinator) -> None:
    worker = coordinator.workers[N2]
    worker.is_cold = True
    task = make_task()
    await coordinator.open(task)
    (asked,) = worker.heard(LoadStage)
    assert isinstance(asked, LoadStage)
    failed = StageReady(stage_ref=asked.stage_ref, error_code="self_test_failed", error="other bits")
    await coordinator.messages.handle(coordinator.tokens[N2], failed)
    await coordinator.settle()
    assert seats(coordinator, task) == [N1, N3]


async def test_a_seat_that_failed_to_load_excludes_the_node(coordinator: Coordinator) -> None:
    coordinator.workers[N2].is_cold = True
    task = make_task()
    await coordinator.open(task)
    failed = SeatReady(task_id=task.task_id, epoch=Epoch(1), lane=0, stage=1, error_code="out_of_memory", error="")
    await coordinator.messages.handle(coordinator.tokens[N2], failed)
    await coordinator.settle()
    assert seats(coordinator, task) == [N1, N3]


@pytest.mark.parametrize(("code", "is_pardoned"), [("peer_unavailable", True), ("circuit_open", True), ("bad", False)])
@pytest.mark.parametrize("late", ["seat", "stage"])
async def test_a_node_that_lacked_another_service_is_asked_again_after_a_while(
    late: str, code: str, is_pardoned: bool, coordinator: Coordinator
) -> None:
    coordinator.partitioner.min_nodes = 3  # nobody to go on without it
    worker = coordinator.workers[N2]
    worker.is_cold = True
    task = make_task()
    await coordinator.open(task)
    (asked,) = worker.heard(LoadStage)
    assert isinstance(asked, LoadStage)
    failed: StageReady | SeatReady
    if late == "stage":
        failed = StageReady(stage_ref=asked.stage_ref, error_code=code, error="why")
    else:
        failed = SeatReady(task_id=task.task_id, epoch=Epoch(1), lane=0, stage=1, error_code=code, error="why")
    await coordinator.messages.handle(coordinator.tokens[N2], failed)
    worker.is_cold = False
    await coordinator.advance(AWAY_S - 1.0)
    session = coordinator.session(task)
    assert session.phase is SessionPhase.RECOVERING
    await coordinator.advance(3.0)
    assert session.phase is (SessionPhase.PREFILLING if is_pardoned else SessionPhase.RECOVERING)
    assert [(each.kind, each.suspect) for each in session.faults] == [
        (FaultKind.LACK if is_pardoned else FaultKind.LOAD, N2)
    ]


async def test_a_slot_that_is_still_being_freed_is_waited_for(coordinator: Coordinator) -> None:
    coordinator.workers[N2].refusals = [NoSlotSpace("all slots taken"), NoSlotSpace("all slots taken")]
    task = make_task()
    session = await coordinator.open(task)
    assert session.phase is SessionPhase.ASSIGNING
    await coordinator.advance(1)
    assert (session.phase, session.epoch, session.faults) == (SessionPhase.PREFILLING, 1, [])


async def test_a_node_that_others_are_probing_is_waited_for(coordinator: Coordinator) -> None:
    coordinator.workers[N2].refusals = [CircuitOpen("it is being probed", retry_after_s=0.05)] * 3
    task = make_task()
    session = await coordinator.open(task)
    assert session.phase is SessionPhase.ASSIGNING
    await coordinator.advance(1)
    assert (session.phase, session.epoch, session.faults) == (SessionPhase.PREFILLING, 1, [])


async def test_nodes_whose_circuits_stay_open_never_fail_a_task_that_has_time_left(coordinator: Coordinator) -> None:
    coordinator.partitioner.min_nodes = 3
    refusals: list[ButterflyError] = [CircuitOpen("it failed before", retry_after_s=60.0)] * (2 * MAX_REASSIGNMENTS)
    coordinator.workers[N2].refusals = refusals
    task = make_task()
    session = await coordinator.open(task)
    while refusals:
        await coordinator.advance(AWAY_S)
    await coordinator.advance(AWAY_S)
    assert {fault.kind for fault in session.faults} == {FaultKind.LACK}
    assert len(session.faults) == 2 * MAX_REASSIGNMENTS
    assert (session.phase, seats(coordinator, task)) == (SessionPhase.PREFILLING, [N1, N2, N3])


async def test_two_engine_crashes_at_one_position_are_poison(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    await coordinator.draft(task, 10)
    await coordinator.messages.handle(coordinator.tokens[N2], fault(task, 1, "engine_fault"))
    await coordinator.settle()
    assert coordinator.session(task).epoch == 2
    holder = coordinator.session(task).seats[0].node_id
    await coordinator.messages.handle(coordinator.tokens[holder], fault(task, 0, "engine_fault", epoch=2))
    await coordinator.settle()
    record = await coordinator.record(task)
    assert (record.state, record.error_code) == (TaskState.FAILED, GENERATION_FAILED)
    assert "poison" in record.error
    assert coordinator.workers.holding(task.task_id) == []
    assert len(coordinator.events.of(TaskFailed)) == 1


async def test_endless_losses_fail_the_task(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=40)
    await coordinator.open(task)
    for epoch in range(1, MAX_REASSIGNMENTS + 2):
        assert coordinator.session(task).epoch == epoch
        await coordinator.draft(task, epoch)
        holder = coordinator.session(task).seats[0].node_id
        await coordinator.messages.handle(coordinator.tokens[holder], fault(task, 0, "bad_slot", epoch=epoch))
        await coordinator.settle()
    assert (await coordinator.record(task)).error_code == GENERATION_FAILED


async def test_a_cancel_while_recovering_ends_the_session(coordinator: Coordinator) -> None:
    coordinator.partitioner.min_nodes = 3
    task = make_task()
    await coordinator.open(task)
    await coordinator.lose(N2)
    await coordinator.advance(3)
    await coordinator.registry.cancel(task.task_id)
    coordinator.sessions.cancel(task.task_id)
    await coordinator.settle()
    assert not coordinator.has_session(task)


async def test_a_restarted_coordinator_adopts_running_tasks(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=4)
    await coordinator.open(task)
    await coordinator.draft(task, 10)
    await coordinator.stop()
    assert await coordinator.state(task) is TaskState.COMPUTING

    later = await Coordinator(
        clock=coordinator.clock, registry=coordinator.registry, workers=coordinator.workers, boot_id="run-2"
    ).start()
    await later.advance(LEASE_S + 0.5)
    session = later.session(task)
    assert (session.phase, session.epoch) == (SessionPhase.PREFILLING, 3)  # one epoch to have it, one to run in
    assert later.workers[N1].assignments()[-1].prefix_ids == (*task.prompt_ids, 10)
    await later.draft(task, 11, 12, 13)
    assert await later.token_ids(task) == [10, 11, 12, 13]
    assert [event.reason for event in later.events.of(SessionReassigned)] == ["adopted"]
    await later.stop()


async def test_a_task_whose_coordinator_died_while_assigning_is_adopted(coordinator: Coordinator) -> None:
    coordinator.workers[N2].is_cold = True
    task = make_task()
    await coordinator.open(task)
    await coordinator.stop()
    assert await coordinator.state(task) is TaskState.COORDINATING

    later = await Coordinator(clock=coordinator.clock, registry=coordinator.registry, boot_id="run-2").start()
    await later.advance(1.5)
    assert not later.has_session(task)  # its lease holds
    await later.advance(2)
    assert later.session(task).epoch == 3
    await later.stop()


async def test_a_task_that_the_scheduler_still_holds_is_not_adopted(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.coordinate(task, even_plan(NODES))
    await coordinator.advance(10)
    assert not coordinator.has_session(task)


async def test_a_recovering_task_that_is_cancelled_elsewhere_is_let_go(coordinator: Coordinator) -> None:
    coordinator.partitioner.min_nodes = 9
    task = make_task()
    await coordinator.open(task)
    await coordinator.lose(N2)
    await coordinator.advance(3)
    await coordinator.registry.cancel(task.task_id)
    await coordinator.advance(2)  # nobody told us: the next look at the registry does
    assert not coordinator.has_session(task)


async def test_a_cancelled_session_stops_asking_for_a_slot(coordinator: Coordinator) -> None:
    coordinator.workers[N2].refusals = [NoSlotSpace("all slots taken")] * 1_000
    task = make_task()
    await coordinator.open(task)
    await coordinator.registry.cancel(task.task_id)
    coordinator.sessions.cancel(task.task_id)
    await coordinator.advance(1)
    assert not coordinator.has_session(task)
    assert [node.slots_used for node in coordinator.members.nodes().nodes] == [0, 0, 0]


async def test_a_session_past_its_deadline_stops_asking_for_a_slot(coordinator: Coordinator) -> None:
    coordinator.workers[N2].refusals = [NoSlotSpace("all slots taken")] * 1_000
    task = make_task(deadline_s=2)
    await coordinator.open(task)
    await coordinator.advance(3)
    assert not coordinator.has_session(task)
    assert await coordinator.state(task) is TaskState.FAILED


async def test_a_node_that_was_away_for_a_moment_is_asked_again_when_no_other_can_do_it(
    coordinator: Coordinator,
) -> None:
    coordinator.partitioner.min_nodes = 3
    coordinator.workers[N2].refusals = [PeerUnavailable(f"{N2} did not answer in time")]
    task = make_task()
    session = await coordinator.open(task)
    assert session.phase is SessionPhase.RECOVERING
    await coordinator.advance(7)
    assert (session.phase, seats(coordinator, task)) == (SessionPhase.PREFILLING, [N1, N2, N3])
