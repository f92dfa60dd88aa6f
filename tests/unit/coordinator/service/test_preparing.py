"""Spare nodes have fetched and tested their stages before they are needed, and nobody waits for that."""

from dataclasses import replace

from services.coordinator.service.assigning import stage_ref
from services.coordinator.service.member import stage_key
from services.coordinator.service.preparing import IDLE_LOOKS, LOOK_EVERY_S, PATIENCE_S
from shared.contracts.coordinator import Place
from shared.contracts.messages import LoadStage, StageReady
from shared.domain.ids import NodeId
from shared.domain.plan import LayerRange, PartitionPlan
from shared.domain.session import SessionPhase
from shared.domain.task import InferenceTask
from tests.fakes.identities import N1, N2, N3, N4, N5
from tests.fakes.partitioner import even_plan
from tests.unit.coordinator.harness import Coordinator
from tests.unit.coordinator.service.test_verified_sessions import audited

IDLE_S = IDLE_LOOKS * LOOK_EVERY_S + 0.1
PLAN = replace(even_plan([N1, N2, N3]), spares=((N4, N5), (N4, N5), (N4, N5)))
LOW, MIDDLE, HIGH = LayerRange(0, 2), LayerRange(2, 4), LayerRange(4, 6)


async def placed(coordinator: Coordinator, plan: PartitionPlan = PLAN) -> None:
    for node_id in (N4, N5):
        await coordinator.join(node_id)
    await coordinator.placements.place(Place(plan=plan))


def prepared(coordinator: Coordinator) -> list[tuple[NodeId, LayerRange]]:
    """In no order between nodes."""
    return [
        (node_id, message.stage_ref.layers)
        for node_id in (N1, N2, N3, N4, N5)
        for message in coordinator.workers[node_id].heard(LoadStage)
        if isinstance(message, LoadStage) and not message.holds
    ]


async def test_spares_are_asked_one_after_the_other_while_nothing_runs(coordinator: Coordinator) -> None:
    await placed(coordinator)
    assert prepared(coordinator) == []
    for count in (1, 2, 3, 4, 5, 6, 7, 8, 9, 9):
        await coordinator.advance(IDLE_S)
        assert len(prepared(coordinator)) == count
    spares = [(node, layers) for node in (N4, N5) for layers in (LOW, MIDDLE, HIGH)]
    assert prepared(coordinator) == [(N1, MIDDLE), (N1, HIGH), (N2, LOW), *spares]
    assert all(not node.stages for node in coordinator.members.nodes().nodes if node.node_id in {N4, N5})


async def test_the_first_spare_of_every_stage_comes_before_the_second_of_any(coordinator: Coordinator) -> None:
    await placed(coordinator)
    await coordinator.advance(3 * IDLE_S)
    assert {node_id for node_id, _ in prepared(coordinator)} == {N4}


async def test_where_spares_are_few_nodes_with_other_seats_prepare_too(coordinator: Coordinator) -> None:
    await placed(coordinator, replace(PLAN, spares=((N4,), (), ())))
    await coordinator.advance(8 * IDLE_S)
    own = [(N1, MIDDLE), (N1, HIGH), (N2, LOW), (N2, HIGH), (N3, MIDDLE), (N3, LOW), (N4, LOW)]
    assert prepared(coordinator) == own


async def answering(coordinator: Coordinator) -> InferenceTask:
    """A session of N1, N2 and N3 has begun."""
    task = audited()
    session = await coordinator.open(task, [N1, N2, N3])
    assert session.plan is not None
    for seat in session.plan.seats:
        refs = coordinator.loaded.get(seat.node_id, ())
        coordinator.loaded[seat.node_id] = (*refs, stage_ref(session.plan, seat))
    return task


async def test_nobody_is_asked_where_an_answer_is_made(coordinator: Coordinator) -> None:
    for node_id in (N1, N2, N3, N4, N5):
        await coordinator.join(node_id, host="one for all")
    await coordinator.placements.place(Place(plan=PLAN))
    task = await answering(coordinator)
    await coordinator.advance(2 * IDLE_S)
    assert prepared(coordinator) == []
    await coordinator.registry.cancel(task.task_id)
    coordinator.sessions.cancel(task.task_id)
    await coordinator.settle()
    await coordinator.advance(IDLE_S)
    assert len(prepared(coordinator)) == 1


async def test_a_spare_on_a_host_of_its_own_prepares_while_others_answer(coordinator: Coordinator) -> None:
    await placed(coordinator)
    await answering(coordinator)
    await coordinator.advance(IDLE_S)
    assert prepared(coordinator) == [(N4, LOW)]


async def test_a_node_that_is_always_busy_keeps_its_own_host_from_it_alone(coordinator: Coordinator) -> None:
    await placed(coordinator)
    coordinator.workers[N4].is_cold = True
    member = coordinator.members.find(N4)
    assert member is not None
    coordinator.members.loading(N4, stage_ref(PLAN, PLAN.seats[0]))
    await coordinator.advance(4 * IDLE_S)
    asked = {node_id for node_id, _ in prepared(coordinator)}
    assert N5 in asked
    assert N4 not in asked


async def test_the_next_one_is_asked_when_the_last_has_said_how_it_went(coordinator: Coordinator) -> None:
    await placed(coordinator)
    coordinator.workers[N4].is_cold = True
    await coordinator.advance(10 * IDLE_S)
    assert prepared(coordinator) == [(N4, LOW)]
    failed = StageReady(stage_ref=stage_ref(PLAN, PLAN.seats[0]), holds=False, error_code="out_of_memory")
    await coordinator.messages.handle(coordinator.tokens[N4], failed)
    await coordinator.advance(IDLE_S)
    assert len(prepared(coordinator)) == 2


async def test_a_node_that_never_says_how_it_went_is_not_waited_for_for_ever(coordinator: Coordinator) -> None:
    await placed(coordinator)
    coordinator.workers[N4].is_cold = True
    await coordinator.advance(PATIENCE_S + 2 * IDLE_S)
    assert {node_id for node_id, _ in prepared(coordinator)} == {N4, N5}
    assert len(coordinator.workers[N4].heard(LoadStage)) == 1


async def test_a_node_that_is_drained_is_not_asked(coordinator: Coordinator) -> None:
    await placed(coordinator)
    await coordinator.members.drain(N4)
    await coordinator.advance(8 * IDLE_S)
    assert N4 not in {node_id for node_id, _ in prepared(coordinator)}


async def test_a_preparation_that_fails_harms_no_session_that_waits_for_the_stage(coordinator: Coordinator) -> None:
    coordinator.workers[N2].is_cold = True
    task = audited()
    session = await coordinator.open(task, [N1, N2, N3])
    assert session.phase is SessionPhase.LOADING
    ref = coordinator.workers[N2].heard(LoadStage)[0]
    assert isinstance(ref, LoadStage)
    failed = StageReady(stage_ref=ref.stage_ref, holds=False, error_code="out_of_memory")
    await coordinator.messages.handle(coordinator.tokens[N2], failed)
    assert (session.phase, session.faults) == (SessionPhase.LOADING, [])


async def test_what_a_test_found_is_known_before_the_stage_is_held(coordinator: Coordinator) -> None:
    await placed(coordinator)
    worker = coordinator.workers[N4]
    worker.is_cold = True
    await coordinator.advance(IDLE_S)
    member = coordinator.members.find(N4)
    assert member is not None
    assert not member.facts
    (asked,) = worker.heard(LoadStage)
    assert isinstance(asked, LoadStage)
    told = StageReady(stage_ref=asked.stage_ref, holds=False, facts=worker.facts)
    await coordinator.messages.handle(coordinator.tokens[N4], told)
    assert member.facts == {stage_key(asked.stage_ref): worker.facts}
    assert not member.loaded


async def test_another_run_of_a_node_is_asked_again(coordinator: Coordinator) -> None:
    await placed(coordinator)
    await coordinator.advance(3 * IDLE_S)
    await coordinator.join(N4, boot_id="boot-2")
    await coordinator.advance(IDLE_S)
    assert prepared(coordinator).count((N4, LOW)) == 1  # its first run is not in the list any more
    assert len(coordinator.workers[N4].heard(LoadStage)) == 1
