"""Who is here: registration, heartbeats, leases, draining, and what is shown of it."""

from dataclasses import replace

import pytest

from shared.contracts.coordinator import Place, RegisterNode
from shared.contracts.messages import Heartbeat, LoadStage, StageReady
from shared.domain.errors import (
    ButterflyError,
    Forbidden,
    InvalidCredentials,
    InvalidInput,
    NoCapacity,
    NodeNotFound,
    PeerUnavailable,
    RegistryUnavailable,
)
from shared.domain.ids import NodeId
from shared.domain.numerics import Profile, StageFacts
from shared.domain.session import NodeState
from shared.events.catalogue import NodeFailure, NodeJoined, NodeStateChanged
from tests.fakes.identities import COORDINATOR_KEY, KEYS, N1, N2, N3, N4, N9, capability, registration
from tests.fakes.partitioner import even_plan
from tests.fakes.tasks import make_task
from tests.unit.coordinator.harness import NODES, Coordinator


def states(coordinator: Coordinator) -> dict[str, NodeState]:
    return {node.node_id: node.state for node in coordinator.members.nodes().nodes}


def forged(node: RegisterNode) -> RegisterNode:
    signature = KEYS[N4].sign("node", {"v": 1}).signature.hex()
    return node.model_copy(update={"proof": node.proof.model_copy(update={"signature": signature})})


async def register(coordinator: Coordinator, join_token: str, **changes: object) -> None:
    await coordinator.members.register(join_token, registration(capability(N9, **changes), "http://n9:1"))


async def test_a_registered_node_is_ready_and_told(coordinator: Coordinator) -> None:
    assert states(coordinator) == dict.fromkeys(NODES, NodeState.READY)
    assert [event.node_id for event in coordinator.events.of(NodeJoined)] == list(NODES)


@pytest.mark.parametrize("join_token", ["", "wrong", "joi", "joinn", "jöin"])
async def test_a_wrong_join_token_admits_nobody(coordinator: Coordinator, join_token: str) -> None:
    with pytest.raises(InvalidCredentials):
        await register(coordinator, join_token)
    assert N9 not in states(coordinator)


@pytest.mark.parametrize("admits_all", [True, False])
async def test_without_a_join_token_only_a_coordinator_on_loopback_admits(
    coordinator: Coordinator, admits_all: bool
) -> None:
    coordinator.members._terms = replace(coordinator.members._terms, join_token="", admits_all=admits_all)
    if admits_all:
        await register(coordinator, "")
    else:
        with pytest.raises(InvalidCredentials, match="join_token"):
            await register(coordinator, "")
    assert (N9 in states(coordinator)) is admits_all


async def test_a_capability_that_no_node_has_is_refused(coordinator: Coordinator) -> None:
    with pytest.raises(InvalidInput, match="memory_bytes"):
        await register(coordinator, "join", memory_bytes=-1)


async def test_a_silent_node_is_suspect_then_gone_within_three_seconds(coordinator: Coordinator) -> None:
    coordinator.silent.add(N2)
    await coordinator.advance(1.5)
    assert states(coordinator)[N2] is NodeState.SUSPECT
    await coordinator.advance(1.5)
    assert N2 not in states(coordinator)
    assert coordinator.events.of(NodeFailure) == [NodeFailure(N2, evidence="", reason="lease")]
    changes = [event.to_state for event in coordinator.events.of(NodeStateChanged) if event.node_id == N2]
    assert changes == ["suspect", "lost"]
    assert coordinator.workers.forgotten == [N2]


async def test_a_suspect_node_that_speaks_again_is_ready(coordinator: Coordinator) -> None:
    coordinator.silent.add(N2)
    await coordinator.advance(1.5)
    await coordinator.beat(N2)
    assert states(coordinator)[N2] is NodeState.READY


async def test_a_suspect_node_gets_no_new_seats(coordinator: Coordinator) -> None:
    coordinator.silent.add(N2)
    await coordinator.advance(1.5)
    with pytest.raises(NoCapacity):
        await coordinator.open(make_task())


async def test_a_coordinator_that_overslept_blames_nobody(coordinator: Coordinator) -> None:
    coordinator.members.sweep(overslept_s=0.0)
    coordinator.clock._now_s += 5.0  # the process stood still: no timer ran, no heartbeat was read
    coordinator.members.sweep(overslept_s=5.0)
    assert states(coordinator) == dict.fromkeys(NODES, NodeState.READY)


async def test_a_lost_node_has_to_register_again(coordinator: Coordinator) -> None:
    coordinator.silent.add(N2)
    await coordinator.advance(3)
    with pytest.raises(NodeNotFound):
        await coordinator.beat(N2)
    await coordinator.join(N2)
    assert states(coordinator)[N2] is NodeState.READY


async def test_a_drained_node_keeps_its_sessions_and_gets_no_new_ones(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=2)
    session = await coordinator.open(task)
    await coordinator.members.drain(NodeId(N2))
    await coordinator.settle()
    assert states(coordinator)[N2] is NodeState.DRAINING
    assert session.epoch == 1
    with pytest.raises(NoCapacity):
        await coordinator.open(make_task())
    await coordinator.draft(task, 10, 11)
    assert await coordinator.token_ids(task) == [10, 11]


async def test_draining_outlives_a_new_run_and_ends_by_resume(coordinator: Coordinator) -> None:
    await coordinator.members.drain(NodeId(N2))
    await coordinator.join(N2, boot_id="boot-2")
    assert states(coordinator)[N2] is NodeState.DRAINING
    await coordinator.members.resume(NodeId(N2))
    assert states(coordinator)[N2] is NodeState.READY


async def test_unknown_nodes_cannot_be_drained(coordinator: Coordinator) -> None:
    with pytest.raises(NodeNotFound):
        await coordinator.members.drain(NodeId(N9))


async def test_a_node_that_stops_says_so_and_gets_no_new_seats(coordinator: Coordinator) -> None:
    await coordinator.messages.handle(coordinator.tokens[N2], Heartbeat(boot_id="boot-1", draining=True))
    assert states(coordinator)[N2] is NodeState.DRAINING


async def test_a_placement_is_shown_while_it_loads_and_after(coordinator: Coordinator) -> None:
    for node in NODES:
        coordinator.workers[node].is_cold = True
    await coordinator.placements.place(Place(plan=even_plan(NODES)))
    shown = [[(seat.model, seat.start, seat.end) for seat in node.stages] for node in coordinator.members.nodes().nodes]
    assert shown == [[("tiny", 0, 2)], [("tiny", 2, 4)], [("tiny", 4, 6)]]

    order = coordinator.workers[N1].heard(LoadStage)[0]
    assert isinstance(order, LoadStage)
    facts = StageFacts("avx512", "cd", Profile.EXACT, None)
    ready = StageReady(stage_ref=order.stage_ref, facts=facts)
    await coordinator.messages.handle(coordinator.tokens[N1], ready)
    member = coordinator.members.find(NodeId(N1))
    assert member is not None
    assert list(member.facts.values()) == [facts]
    assert len(coordinator.members.nodes().nodes[0].stages) == 1


async def test_what_a_node_says_of_a_stage_counts_also_when_it_comes_after_the_stage_was_dropped_again(
    coordinator: Coordinator,
) -> None:
    coordinator.workers[N1].is_cold = True
    await coordinator.placements.place(Place(plan=even_plan(NODES)))
    order = coordinator.workers[N1].heard(LoadStage)[0]
    assert isinstance(order, LoadStage)
    token = coordinator.tokens[N1]
    await coordinator.messages.handle(token, Heartbeat(boot_id="boot-1", stages=(order.stage_ref,)))
    await coordinator.messages.handle(token, Heartbeat(boot_id="boot-1"))
    facts = StageFacts("avx512", "cd", Profile.EXACT, None)
    await coordinator.messages.handle(token, StageReady(stage_ref=order.stage_ref, facts=facts))
    member = coordinator.members.find(NodeId(N1))
    assert member is not None
    assert list(member.facts.values()) == [facts]


async def test_what_a_node_says_of_a_stage_counts_also_when_another_call_about_it_has_failed(
    coordinator: Coordinator,
) -> None:
    coordinator.workers[N1].is_cold = True
    await coordinator.placements.place(Place(plan=even_plan(NODES)))
    order = coordinator.workers[N1].heard(LoadStage)[0]
    assert isinstance(order, LoadStage)
    coordinator.members.not_loading(NodeId(N1), order.stage_ref)
    facts = StageFacts("avx512", "cd", Profile.EXACT, None)
    await coordinator.messages.handle(coordinator.tokens[N1], StageReady(stage_ref=order.stage_ref, facts=facts))
    member = coordinator.members.find(NodeId(N1))
    assert member is not None
    assert list(member.facts.values()) == [facts]


async def test_a_stage_that_could_not_be_loaded_is_not_shown(coordinator: Coordinator) -> None:
    coordinator.workers[N1].is_cold = True
    await coordinator.placements.place(Place(plan=even_plan(NODES)))
    order = coordinator.workers[N1].heard(LoadStage)[0]
    assert isinstance(order, LoadStage)
    failed = StageReady(stage_ref=order.stage_ref, error_code="out_of_memory", error="too big")
    await coordinator.messages.handle(coordinator.tokens[N1], failed)
    assert coordinator.members.nodes().nodes[0].stages == ()


async def test_a_placement_on_a_node_that_does_not_answer_says_so_after_telling_the_others(
    coordinator: Coordinator,
) -> None:
    coordinator.workers[N1].is_away = True
    with pytest.raises(PeerUnavailable):
        await coordinator.placements.place(Place(plan=even_plan(NODES)))
    assert len(coordinator.workers[N3].heard(LoadStage)) == 1


async def test_stages_of_a_heartbeat_replace_what_was_shown(coordinator: Coordinator) -> None:
    await coordinator.placements.place(Place(plan=even_plan(NODES)))
    await coordinator.beat(N1)
    assert coordinator.members.nodes().nodes[0].stages == ()


async def test_a_node_that_cannot_be_called_is_not_admitted(coordinator: Coordinator) -> None:
    with pytest.raises(InvalidInput, match="address"):
        await coordinator.members.register("join", registration(capability(N9), "http://n9:port"))
    assert len(coordinator.members.nodes().nodes) == 3


async def test_a_registration_tells_the_key_of_the_coordinator_and_keeps_that_of_the_node(
    coordinator: Coordinator,
) -> None:
    answer = await coordinator.members.register("join", registration(capability(N9), "http://n9:1"))
    assert answer.coordinator_key == COORDINATOR_KEY.public_key.hex()
    assert coordinator.members.key_of(N9) == KEYS[N9].public_key
    with pytest.raises(NodeNotFound):
        coordinator.members.key_of(N4)


@pytest.mark.parametrize(
    ("refused", "node"),
    [
        (InvalidInput, registration(capability(N9), "http://n9:1", key=KEYS[N4])),
        (InvalidCredentials, forged(registration(capability(N9), "http://n9:1"))),
        (InvalidInput, registration(capability(N9), "http://n9:1", claims={"node_id": N4})),
        (InvalidInput, registration(capability(N9), "http://n9:1", claims={"address": "http://n4:1"})),
        (InvalidInput, registration(capability(N9), "http://n9:1", claims={"boot_id": "boot-0"})),
        (InvalidInput, registration(capability(N9), "http://n9:1", claims={"v": 2})),
        (InvalidInput, registration(capability(N9), "http://n9:1", claims={"more": "x"})),
        (InvalidInput, registration(capability(N9), "http://n9:1", coordinator="http://elsewhere")),
    ],
    ids=["key", "signature", "node_id", "address", "boot_id", "version", "field", "coordinator"],
)
async def test_a_registration_whose_proof_does_not_fit_is_refused(
    coordinator: Coordinator, refused: type[ButterflyError], node: RegisterNode
) -> None:
    with pytest.raises(refused):
        await coordinator.members.register("join", node)
    assert N9 not in states(coordinator)


async def test_an_evicted_node_is_out_at_once_and_stays_out(coordinator: Coordinator) -> None:
    task = make_task()
    session = await coordinator.open(task)
    await coordinator.members.evict(N2, "e1", "signed another digest")
    assert N2 not in {member.node_id for member in coordinator.members.ready()}
    assert N2 in {fault.suspect for fault in session.faults}
    with pytest.raises(NodeNotFound):
        await coordinator.beat(N2)
    with pytest.raises(Forbidden, match=r"signed another digest \(evidence e1\)"):
        await coordinator.join(N2, boot_id="boot-2")
    assert coordinator.events.of(NodeFailure) == [NodeFailure(N2, evidence="e1", reason="evidence")]
    assert [event.to_state for event in coordinator.events.of(NodeStateChanged)] == ["evicted"]


async def test_an_evicted_node_is_shown_with_its_evidence(coordinator: Coordinator) -> None:
    await coordinator.members.evict(N2, "e1", "lied")
    (node,) = [node for node in coordinator.members.nodes().nodes if node.node_id == N2]
    assert (node.state, node.address) == (NodeState.EVICTED, f"http://{N2}:8090")
    assert node.reason == "lied (evidence e1)"
    assert coordinator.sessions.state().nodes == {"ready": 2, "evicted": 1}


async def test_the_first_evidence_stands_and_is_told_once(coordinator: Coordinator) -> None:
    await coordinator.members.evict(N2, "e1", "lied")
    await coordinator.members.evict(N2, "e2", "lied again")
    assert [event.evidence for event in coordinator.events.of(NodeFailure)] == ["e1"]
    assert [standing.evidence_id for standing in await coordinator.standings.all()] == ["e1"]


async def test_an_eviction_outlives_the_coordinator(coordinator: Coordinator) -> None:
    await coordinator.members.evict(N2, "e1", "lied")
    later = Coordinator(clock=coordinator.clock, standings=coordinator.standings)
    with pytest.raises(Forbidden):
        await later.join(N2)
    await later.join(N1)
    assert states(later) == {N1: NodeState.READY, N2: NodeState.EVICTED}


async def test_a_node_that_is_not_here_can_be_evicted(coordinator: Coordinator) -> None:
    await coordinator.members.evict(N9, "e1", "lied before it left")
    with pytest.raises(Forbidden):
        await coordinator.join(N9)


async def test_an_eviction_holds_at_once_and_is_kept_when_the_registry_is_back(coordinator: Coordinator) -> None:
    coordinator.standings.is_away = True
    coordinator.silent.add(N2)
    evicting = coordinator.tasks.start(coordinator.members.evict(N2, "e1", "lied"), name="evict")
    await coordinator.settle()
    assert states(coordinator)[N2] is NodeState.EVICTED
    assert not evicting.done()
    coordinator.standings.is_away = False
    await coordinator.advance(1.5)
    assert evicting.done()
    assert [standing.node_id for standing in await coordinator.standings.all()] == [N2]


async def test_nobody_is_admitted_before_it_is_known_who_is_evicted() -> None:
    coordinator = Coordinator()
    coordinator.standings.is_away = True
    with pytest.raises(RegistryUnavailable):
        await coordinator.join(N1)
    coordinator.standings.is_away = False
    await coordinator.join(N1)


async def test_an_evicted_node_that_is_reinstated_may_register(coordinator: Coordinator) -> None:
    await coordinator.members.evict(N2, "e1", "lied")
    await coordinator.members.reinstate(N2)
    await coordinator.join(N2, boot_id="boot-2")
    assert states(coordinator)[N2] is NodeState.READY
    assert await coordinator.standings.all() == ()


async def test_who_is_not_kept_away_cannot_be_reinstated(coordinator: Coordinator) -> None:
    with pytest.raises(NodeNotFound):
        await coordinator.members.reinstate(N2)


async def test_a_reinstatement_that_cannot_be_kept_changes_nothing(coordinator: Coordinator) -> None:
    await coordinator.members.evict(N2, "e1", "lied")
    coordinator.standings.is_away = True
    with pytest.raises(RegistryUnavailable):
        await coordinator.members.reinstate(N2)
    assert states(coordinator)[N2] is NodeState.EVICTED


async def test_a_quarantined_node_gets_no_seats_keeps_its_sessions_and_returns(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=2)
    session = await coordinator.open(task)
    await coordinator.members.quarantine(N2, "three faults")
    assert states(coordinator)[N2] is NodeState.QUARANTINED
    assert coordinator.members.nodes().nodes[1].reason == "three faults"
    assert session.epoch == 1
    with pytest.raises(NoCapacity):
        await coordinator.open(make_task())
    await coordinator.draft(task, 10, 11)
    assert await coordinator.token_ids(task) == [10, 11]
    await coordinator.advance(61)
    assert states(coordinator)[N2] is NodeState.READY


async def test_a_quarantine_outlives_a_new_run_of_node_and_coordinator(coordinator: Coordinator) -> None:
    await coordinator.members.quarantine(N2, "odd")
    await coordinator.join(N2, boot_id="boot-2")
    assert states(coordinator)[N2] is NodeState.QUARANTINED
    later = Coordinator(clock=coordinator.clock, standings=coordinator.standings)
    await later.join(N2)
    assert states(later)[N2] is NodeState.QUARANTINED


async def test_a_quarantine_of_an_operator_lasts_until_it_is_ended(coordinator: Coordinator) -> None:
    await coordinator.members.quarantine(N2, "by the operator", until_reinstated=True)
    await coordinator.advance(61)
    assert states(coordinator)[N2] is NodeState.QUARANTINED
    await coordinator.members.reinstate(N2)
    assert states(coordinator)[N2] is NodeState.READY


async def test_connections_to_an_earlier_address_of_a_node_are_closed(coordinator: Coordinator) -> None:
    for address in (f"http://{N1}:8090", f"http://{N1}:9999"):
        await coordinator.members.register("join", registration(capability(N1), address))
    await coordinator.settle()
    assert coordinator.workers.forgotten == [N1]
