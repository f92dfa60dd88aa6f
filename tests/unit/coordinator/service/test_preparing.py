"""Spare nodes have fetched and tested their stages before they are needed, and nobody waits for that."""

from dataclasses import replace

from services.coordinator.service.assigning import stage_ref
from services.coordinator.service.member import stage_key
from services.coordinator.service.preparing import IDLE_LOOKS, LOOK_EVERY_S
from shared.contracts.coordinator import Place
from shared.contracts.messages import LoadStage, StageReady
from shared.domain.ids import NodeId
from shared.domain.plan import LayerRange, PartitionPlan
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
    for count in (1, 2, 3, 4, 5, 6, 6):
        await coordinator.advance(IDLE_S)
        assert len(prepared(coordinator)) == count
    assert prepared(coordinator) == [(node, layers) for node in (N4, N5) for layers in (LOW, MIDDLE, HIGH)]
    assert all(not node.stages for node in coordinator.members.nodes().nodes if node.node_id in {N4, N5})


async def test_the_first_spare_of_every_stage_comes_before_the_second_of_any(coordinator: Coordinator) -> None:
    await placed(coordinator)
    await coordinator.advance(3 * IDLE_S)
    assert {node_id for node_id, _ in prepared(coordinator)} == {N4}


async def test_where_spares_are_few_nodes_with_other_seats_prepare_too(coordinator: Coordinator) -> None:
    await placed(coordinator, replace(PLAN, spares=((N4,), (), ())))
    await coordinator.advance(7 * IDLE_S)
    assert prepared(coordinator) == [(N1, MIDDLE), (N1, HIGH), (N2, LOW), (N2, HIGH), (N3, MIDDLE), (N4, LOW)]


async def test_nobody_is_asked_while_an_answer_is_made(coordinator: Coordinator) -> None:
    await placed(coordinator)
    task = audited()
    session = await coordinator.open(task, [N1, N2, N3])
    assert session.plan is not None
    for seat in session.plan.seats:
        refs = coordinator.loaded.get(seat.node_id, ())
        coordinator.loaded[seat.node_id] = (*refs, stage_ref(session.plan, seat))
    await coordinator.advance(IDLE_S)
    assert prepared(coordinator) == []
    await coordinator.registry.cancel(task.task_id)
    coordinator.sessions.cancel(task.task_id)
    await coordinator.settle()
    await coordinator.advance(IDLE_S)
    assert len(prepared(coordinator)) == 1


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
