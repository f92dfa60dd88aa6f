"""Who is here: registration, heartbeats, leases, draining, and what is shown of it."""

import pytest

from services.coordinator.service.membership import Terms
from shared.contracts.coordinator import Place, RegisterNode
from shared.contracts.messages import Heartbeat, LoadStage, StageReady
from shared.domain.errors import InvalidCredentials, InvalidInput, NoCapacity, NodeNotFound, PeerUnavailable
from shared.domain.ids import NodeId
from shared.domain.session import NodeState
from shared.events.catalogue import NodeFailure, NodeJoined, NodeStateChanged
from tests.fakes.partitioner import even_plan
from tests.fakes.tasks import make_task
from tests.unit.coordinator.harness import NODES, Coordinator, capability


def states(coordinator: Coordinator) -> dict[str, NodeState]:
    return {node.node_id: node.state for node in coordinator.members.nodes().nodes}


async def register(coordinator: Coordinator, join_token: str, **changes: object) -> None:
    node = RegisterNode(capability=capability("n9", **changes), address="http://n9:1", boot_id="b")
    await coordinator.members.register(join_token, node)


async def test_a_registered_node_is_ready_and_told(coordinator: Coordinator) -> None:
    assert states(coordinator) == dict.fromkeys(NODES, NodeState.READY)
    assert [event.node_id for event in coordinator.events.of(NodeJoined)] == list(NODES)


@pytest.mark.parametrize("join_token", ["", "wrong", "joi", "joinn", "jöin"])
async def test_a_wrong_join_token_admits_nobody(coordinator: Coordinator, join_token: str) -> None:
    with pytest.raises(InvalidCredentials):
        await register(coordinator, join_token)
    assert "n9" not in states(coordinator)


@pytest.mark.parametrize("admits_all", [True, False])
async def test_without_a_join_token_only_a_coordinator_on_loopback_admits(
    coordinator: Coordinator, admits_all: bool
) -> None:
    coordinator.members._terms = Terms("", admits_all, 500, 2_000, "http://p", "http://m")
    if admits_all:
        await register(coordinator, "")
    else:
        with pytest.raises(InvalidCredentials, match="join_token"):
            await register(coordinator, "")
    assert ("n9" in states(coordinator)) is admits_all


async def test_a_capability_that_no_node_has_is_refused(coordinator: Coordinator) -> None:
    with pytest.raises(InvalidInput, match="memory_bytes"):
        await register(coordinator, "join", memory_bytes=-1)


async def test_a_silent_node_is_suspect_then_gone_within_three_seconds(coordinator: Coordinator) -> None:
    coordinator.silent.add("n2")
    await coordinator.advance(1.5)
    assert states(coordinator)["n2"] is NodeState.SUSPECT
    await coordinator.advance(1.5)
    assert "n2" not in states(coordinator)
    assert coordinator.events.of(NodeFailure) == [NodeFailure("n2", evidence="", reason="lease")]
    changes = [event.to_state for event in coordinator.events.of(NodeStateChanged) if event.node_id == "n2"]
    assert changes == ["suspect", "lost"]
    assert coordinator.workers.forgotten == ["n2"]


async def test_a_suspect_node_that_speaks_again_is_ready(coordinator: Coordinator) -> None:
    coordinator.silent.add("n2")
    await coordinator.advance(1.5)
    await coordinator.beat("n2")
    assert states(coordinator)["n2"] is NodeState.READY


async def test_a_suspect_node_gets_no_new_seats(coordinator: Coordinator) -> None:
    coordinator.silent.add("n2")
    await coordinator.advance(1.5)
    with pytest.raises(NoCapacity):
        await coordinator.open(make_task())


async def test_a_coordinator_that_overslept_blames_nobody(coordinator: Coordinator) -> None:
    coordinator.members.sweep(overslept_s=0.0)
    coordinator.clock._now_s += 5.0  # the process stood still: no timer ran, no heartbeat was read
    coordinator.members.sweep(overslept_s=5.0)
    assert states(coordinator) == dict.fromkeys(NODES, NodeState.READY)


async def test_a_lost_node_has_to_register_again(coordinator: Coordinator) -> None:
    coordinator.silent.add("n2")
    await coordinator.advance(3)
    with pytest.raises(NodeNotFound):
        await coordinator.beat("n2")
    await coordinator.join("n2")
    assert states(coordinator)["n2"] is NodeState.READY


async def test_a_drained_node_keeps_its_sessions_and_gets_no_new_ones(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=2)
    session = await coordinator.open(task)
    coordinator.members.drain(NodeId("n2"))
    await coordinator.settle()
    assert states(coordinator)["n2"] is NodeState.DRAINING
    assert session.epoch == 1
    with pytest.raises(NoCapacity):
        await coordinator.open(make_task())
    await coordinator.draft(task, 10, 11)
    assert await coordinator.token_ids(task) == [10, 11]


async def test_draining_outlives_a_new_run_and_ends_by_resume(coordinator: Coordinator) -> None:
    coordinator.members.drain(NodeId("n2"))
    await coordinator.join("n2", boot_id="boot-2")
    assert states(coordinator)["n2"] is NodeState.DRAINING
    coordinator.members.resume(NodeId("n2"))
    assert states(coordinator)["n2"] is NodeState.READY


async def test_unknown_nodes_cannot_be_drained(coordinator: Coordinator) -> None:
    with pytest.raises(NodeNotFound):
        coordinator.members.drain(NodeId("n9"))


async def test_a_node_that_stops_says_so_and_gets_no_new_seats(coordinator: Coordinator) -> None:
    await coordinator.messages.handle(coordinator.tokens["n2"], Heartbeat(boot_id="boot-1", draining=True))
    assert states(coordinator)["n2"] is NodeState.DRAINING


async def test_a_placement_is_shown_while_it_loads_and_after(coordinator: Coordinator) -> None:
    for node in NODES:
        coordinator.workers[node].is_cold = True
    await coordinator.placements.place(Place(plan=even_plan(NODES)))
    shown = [[(seat.model, seat.start, seat.end) for seat in node.stages] for node in coordinator.members.nodes().nodes]
    assert shown == [[("tiny", 0, 2)], [("tiny", 2, 4)], [("tiny", 4, 6)]]

    order = coordinator.workers["n1"].heard(LoadStage)[0]
    assert isinstance(order, LoadStage)
    ready = StageReady(stage_ref=order.stage_ref, numerics_class="avx512", self_test_digest="cd")
    await coordinator.messages.handle(coordinator.tokens["n1"], ready)
    member = coordinator.members.find(NodeId("n1"))
    assert member is not None
    assert [(facts.numerics_class, facts.self_test_digest) for facts in member.facts.values()] == [("avx512", "cd")]
    assert len(coordinator.members.nodes().nodes[0].stages) == 1


async def test_a_stage_that_could_not_be_loaded_is_not_shown(coordinator: Coordinator) -> None:
    coordinator.workers["n1"].is_cold = True
    await coordinator.placements.place(Place(plan=even_plan(NODES)))
    order = coordinator.workers["n1"].heard(LoadStage)[0]
    assert isinstance(order, LoadStage)
    failed = StageReady(stage_ref=order.stage_ref, error_code="out_of_memory", error="too big")
    await coordinator.messages.handle(coordinator.tokens["n1"], failed)
    assert coordinator.members.nodes().nodes[0].stages == ()


async def test_a_placement_on_a_node_that_does_not_answer_says_so_after_telling_the_others(
    coordinator: Coordinator,
) -> None:
    coordinator.workers["n1"].is_away = True
    with pytest.raises(PeerUnavailable):
        await coordinator.placements.place(Place(plan=even_plan(NODES)))
    assert len(coordinator.workers["n3"].heard(LoadStage)) == 1


async def test_stages_of_a_heartbeat_replace_what_was_shown(coordinator: Coordinator) -> None:
    await coordinator.placements.place(Place(plan=even_plan(NODES)))
    await coordinator.beat("n1")
    assert coordinator.members.nodes().nodes[0].stages == ()


async def test_a_node_that_cannot_be_called_is_not_admitted(coordinator: Coordinator) -> None:
    for node_id, address in (("n9", "http://n9:port"), ("partitioner", "http://n9:8090")):
        with pytest.raises(InvalidInput):
            await coordinator.members.register(
                "join", RegisterNode(capability=capability(node_id), address=address, boot_id="boot-1")
            )
    assert len(coordinator.members.nodes().nodes) == 3


async def test_connections_to_an_earlier_address_of_a_node_are_closed(coordinator: Coordinator) -> None:
    for address in ("http://n1:8090", "http://n1:9999"):
        await coordinator.members.register(
            "join", RegisterNode(capability=capability("n1"), address=address, boot_id="boot-1")
        )
    await coordinator.settle()
    assert coordinator.workers.forgotten == ["n1"]
