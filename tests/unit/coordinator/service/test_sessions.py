"""Sessions from the opening to the end, without losses."""

import pytest

from shared.contracts.coordinator import OpenSession
from shared.contracts.messages import SeatReady, SessionStart
from shared.domain.errors import InvalidPlanInput, NoCapacity, ServerDraining, StaleAttempt
from shared.domain.ids import Attempt
from shared.domain.session import SessionPhase
from shared.domain.task import FinishReason, StopRules
from shared.domain.task_state import TaskState
from shared.events.catalogue import PhaseTransition, SessionOpened, TaskCompleted, TaskFailed, TokensCommitted
from tests.fakes.identities import N1, N2, N3, N9
from tests.fakes.partitioner import even_plan
from tests.fakes.tasks import make_task
from tests.unit.coordinator.harness import NODES, Coordinator


async def test_a_warm_session_runs_from_assignment_to_completion(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=3)
    session = await coordinator.open(task)

    assert session.phase is SessionPhase.PREFILLING
    assert [len(coordinator.workers[node].assignments()) for node in NODES] == [1, 1, 1]
    assert [len(coordinator.workers[node].heard(SessionStart)) for node in NODES] == [1, 0, 0]
    assert await coordinator.state(task) is TaskState.COMPUTING

    await coordinator.draft(task, 10)
    assert await coordinator.token_ids(task) == [10]
    await coordinator.draft(task, 11, 12)

    record = await coordinator.record(task)
    assert (record.state, record.finish_reason) == (TaskState.COMPLETED, FinishReason.LENGTH)
    assert await coordinator.token_ids(task) == [10, 11, 12]
    assert coordinator.workers.holding(task.task_id) == []
    assert not coordinator.has_session(task)


async def test_every_step_of_a_session_is_told(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=2)
    await coordinator.open(task)
    await coordinator.draft(task, 10)
    await coordinator.draft(task, 11)

    told = coordinator.events
    assert told.of(SessionOpened) == [SessionOpened(task.task_id, 1, 3)]
    assert [step.to_phase for step in told.of(PhaseTransition)] == ["prefilling", "drafting", "draining", "closed"]
    assert [event.num_tokens for event in told.of(TokensCommitted)] == [1, 1]
    assert [event.nodes_involved for event in told.of(TaskCompleted)] == [NODES]


async def test_the_ends_of_the_ring_get_the_prompt_and_the_middle_does_not(coordinator: Coordinator) -> None:
    task = make_task(prompt_ids=(5, 6, 7), max_tokens=4)
    await coordinator.open(task)
    first, middle, last = (coordinator.workers[node].assignments()[0] for node in NODES)
    assert (first.prefix_ids, middle.prefix_ids, last.prefix_ids) == ((5, 6, 7), (), (5, 6, 7))
    assert (first.num_prompt, first.max_rows, first.max_tokens) == (3, 7, 4)
    assert first.previous is not None
    assert first.next is not None
    assert first.previous.node_id == N3
    assert first.next.node_id == N2


async def test_both_ends_of_a_link_get_the_same_token_and_no_two_links_share_one(coordinator: Coordinator) -> None:
    await coordinator.open(make_task())
    seats = [coordinator.workers[node].assignments()[0] for node in NODES]
    tokens = []
    for seat, following in zip(seats, [*seats[1:], seats[0]], strict=True):
        assert seat.next is not None
        assert following.previous is not None
        assert seat.next.link_token == following.previous.link_token
        tokens.append(seat.next.link_token)
    assert len(set(tokens)) == 3


async def test_a_single_stage_has_no_neighbours(coordinator: Coordinator) -> None:
    await coordinator.open(make_task(), nodes=[N2])
    seat = coordinator.workers[N2].assignments()[0]
    assert (seat.previous, seat.next, seat.num_stages) == (None, None, 1)


async def test_a_cold_seat_is_waited_for_and_then_the_session_starts(coordinator: Coordinator) -> None:
    coordinator.workers[N2].is_cold = True
    task = make_task()
    session = await coordinator.open(task)
    assert session.phase is SessionPhase.LOADING
    assert await coordinator.state(task) is TaskState.COORDINATING

    await coordinator.advance(60)  # loading may take its time
    await coordinator.has_loaded(N2)
    assert session.awaited == {(0, 1)}  # it dropped the stage meanwhile, and loads it for the seat
    await coordinator.advance(60)
    ready = SeatReady(task_id=task.task_id, epoch=session.epoch, lane=0, stage=1)
    await coordinator.messages.handle(coordinator.tokens[N2], ready)
    await coordinator.settle()

    assert coordinator.session(task).phase is SessionPhase.PREFILLING
    assert len(coordinator.workers[N1].heard(SessionStart)) == 1


async def test_a_loaded_stage_is_asked_for_its_seat_again(coordinator: Coordinator) -> None:
    worker = coordinator.workers[N2]
    worker.is_cold = True
    session = await coordinator.open(make_task())
    assert worker.assignments() == []  # what its orders say depends on the stage
    await coordinator.has_loaded(N2)
    num_asked = len(worker.assignments())
    worker.is_cold = False
    await coordinator.has_loaded(N2)
    assert len(worker.assignments()) == num_asked + 1
    assert session.phase is SessionPhase.PREFILLING


async def test_a_stop_string_is_found_over_token_borders(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=30, stop=StopRules(strings=("END",)))
    await coordinator.open(task)
    await coordinator.draft(task, *b"abE")
    await coordinator.draft(task, *b"N")
    assert await coordinator.state(task) is TaskState.COMPUTING
    await coordinator.draft(task, *b"Dxyz")

    record = await coordinator.record(task)
    assert (record.state, record.finish_reason) == (TaskState.COMPLETED, FinishReason.STOP)
    assert bytes(await coordinator.token_ids(task)) == b"abEND"


async def test_the_token_table_is_asked_once(coordinator: Coordinator) -> None:
    for _ in range(2):
        await coordinator.open(make_task(stop=StopRules(strings=("END",))))
    assert coordinator.partitioner.table_calls == 1


async def test_an_end_token_ends_the_answer_and_counts(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=8, stop=StopRules(end_ids=(0,)))
    await coordinator.open(task)
    await coordinator.draft(task, 10, 0)
    record = await coordinator.record(task)
    assert record.finish_reason is FinishReason.STOP
    assert await coordinator.token_ids(task) == [10, 0]


async def test_what_comes_after_the_end_is_dropped_without_a_fuss(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=8, stop=StopRules(strings=("ab",)))
    session = await coordinator.open(task)
    last = coordinator.tokens[N3]
    await coordinator.messages.handle(last, coordinator.drafts(task, *b"ab"))
    await coordinator.messages.handle(last, coordinator.drafts(task, *b"cd"))  # before the worker is told to stop
    await coordinator.settle()
    assert session.phase is SessionPhase.CLOSED
    assert bytes(await coordinator.token_ids(task)) == b"ab"


async def test_a_second_delivery_of_an_opening_changes_nothing(coordinator: Coordinator) -> None:
    task = make_task()
    session = await coordinator.open(task)
    again = OpenSession(task_id=task.task_id, attempt=session.subject.attempt, plan=even_plan(NODES))
    await coordinator.sessions.open(again)
    await coordinator.settle()
    assert coordinator.session(task) is session
    assert (await coordinator.record(task)).epoch == 1


async def test_a_stale_attempt_opens_nothing_and_holds_no_slot(coordinator: Coordinator) -> None:
    task = make_task()
    attempt = await coordinator.coordinate(task, even_plan(NODES))
    wanted = OpenSession(task_id=task.task_id, attempt=Attempt(attempt + 1), plan=even_plan(NODES))
    with pytest.raises(StaleAttempt):
        await coordinator.sessions.open(wanted)
    assert not coordinator.has_session(task)
    assert [node.slots_used for node in coordinator.members.nodes().nodes] == [0, 0, 0]


async def test_full_slots_refuse_before_an_epoch_is_taken(coordinator: Coordinator) -> None:
    for _ in range(2):
        await coordinator.open(make_task())
    third = make_task()
    with pytest.raises(NoCapacity):
        await coordinator.open(third)
    assert (await coordinator.record(third)).epoch == 0


async def test_an_ended_session_gives_its_slots_back(coordinator: Coordinator) -> None:
    tasks = [make_task(max_tokens=1) for _ in range(2)]
    for task in tasks:
        await coordinator.open(task)
    await coordinator.draft(tasks[0], 10)
    await coordinator.open(make_task())


async def test_a_plan_with_a_node_that_is_not_here_is_refused(coordinator: Coordinator) -> None:
    with pytest.raises(NoCapacity):
        await coordinator.open(make_task(), nodes=[N1, N2, N9])


async def test_a_plan_that_leaves_layers_out_is_refused(coordinator: Coordinator) -> None:
    task = make_task()
    whole = even_plan(NODES)
    lane = type(whole.lanes[0])(0, whole.lanes[0].partitions[:2])
    plan = type(whole)(whole.plan_id, whole.model_id, whole.model_root, whole.strategy, (lane,))
    attempt = await coordinator.coordinate(task, plan)
    with pytest.raises(InvalidPlanInput):
        await coordinator.sessions.open(OpenSession(task_id=task.task_id, attempt=attempt, plan=plan))


async def test_a_prompt_longer_than_the_nodes_have_room_fails_the_task(coordinator: Coordinator) -> None:
    task = make_task(prompt_ids=tuple(range(64)))
    plan = even_plan(NODES)
    attempt = await coordinator.coordinate(task, plan)
    await coordinator.sessions.open(OpenSession(task_id=task.task_id, attempt=attempt, plan=plan))
    record = await coordinator.record(task)
    assert (record.state, record.error_code) == (TaskState.FAILED, "context_length_exceeded")
    assert [event.error for event in coordinator.events.of(TaskFailed)] == ["context_length_exceeded"]
    assert [node.slots_used for node in coordinator.members.nodes().nodes] == [0, 0, 0]


async def test_an_answer_ends_where_the_room_of_the_nodes_ends(coordinator: Coordinator) -> None:
    task = make_task(prompt_ids=tuple(range(62)), max_tokens=10)
    await coordinator.open(task)
    assert coordinator.workers[N1].assignments()[0].max_tokens == 2
    await coordinator.draft(task, 10, 11)
    assert (await coordinator.record(task)).finish_reason is FinishReason.LENGTH


async def test_a_cancelled_task_is_stopped_everywhere(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    await coordinator.draft(task, 10)
    await coordinator.registry.cancel(task.task_id)
    coordinator.sessions.cancel(task.task_id)
    await coordinator.settle()
    assert coordinator.workers.holding(task.task_id) == []
    assert not coordinator.has_session(task)
    assert await coordinator.state(task) is TaskState.CANCELLED


async def test_a_cancel_that_nobody_told_us_is_noticed_at_the_next_commit(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    await coordinator.registry.cancel(task.task_id)
    await coordinator.draft(task, 10)
    assert coordinator.workers.holding(task.task_id) == []
    assert await coordinator.token_ids(task) == []


async def test_a_cancel_while_stages_load_ends_the_session(coordinator: Coordinator) -> None:
    coordinator.workers[N1].is_cold = True
    task = make_task()
    await coordinator.open(task)
    await coordinator.registry.cancel(task.task_id)
    coordinator.sessions.cancel(task.task_id)
    await coordinator.settle()
    assert not coordinator.has_session(task)


async def test_cancelling_a_task_without_a_session_is_no_error(coordinator: Coordinator) -> None:
    coordinator.sessions.cancel(make_task().task_id)


async def test_a_session_ends_at_the_deadline_of_its_task(coordinator: Coordinator) -> None:
    task = make_task(deadline_s=3.0)
    await coordinator.open(task)
    await coordinator.draft(task, 10)
    await coordinator.advance(3.5)
    record = await coordinator.record(task)
    assert (record.state, record.error_code) == (TaskState.FAILED, "deadline_exceeded")
    assert coordinator.workers.holding(task.task_id) == []
    assert len(coordinator.events.of(TaskFailed)) == 1


async def test_a_stopping_coordinator_opens_no_sessions(coordinator: Coordinator) -> None:
    coordinator.draining.set()
    with pytest.raises(ServerDraining):
        await coordinator.open(make_task())


async def test_tokens_of_many_sessions_are_appended_together(coordinator: Coordinator) -> None:
    tasks = [make_task(), make_task()]
    for task in tasks:
        await coordinator.open(task)
    both = [coordinator.drafts(task, 10, 11).drafts[0] for task in tasks]
    message = type(coordinator.drafts(tasks[0]))(drafts=tuple(both))
    await coordinator.messages.handle(coordinator.tokens[N3], message)
    await coordinator.settle()
    assert [await coordinator.token_ids(task) for task in tasks] == [[10, 11], [10, 11]]
