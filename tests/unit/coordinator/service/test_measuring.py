"""The coordinator has nodes measured, one at a time on each host, and only while nobody needs them."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from services.coordinator.domain.profile import KEPT_DAYS, MAX_TRIALS, MIN_TRIALS
from services.coordinator.domain.retries import FIRST_WAIT_S
from services.coordinator.service.measuring import LOOK_EVERY_S, PATIENCE_S, SETTLE_S
from shared.contracts.messages import (
    DraftTokens,
    Heartbeat,
    MeasureNode,
    MeetPeers,
    NodeMeasured,
    ReceiptPosted,
    StageRef,
)
from shared.domain.errors import NodeNotFound, ProtocolViolation, RegistryUnavailable
from shared.domain.ids import ModelId, NodeId
from shared.domain.measured import CallTime, Drift, Measured, Pace, PeerLink, StageTimes
from shared.domain.plan import LayerRange, NodeCapability
from shared.domain.task import Verification
from tests.fakes.identities import N1, N2, N3
from tests.fakes.tasks import make_task
from tests.unit.coordinator.cluster import Cluster
from tests.unit.coordinator.harness import Coordinator

STAGE = StageRef(model_id=ModelId("m"), model_root="root", layers=LayerRange(0, 3), num_layers=6)
CALLS = (CallTime(1, 0.01, 0.01, 1),)
TIMES = StageTimes("root", 0, 3, CALLS, CALLS, CALLS)
FAST, SLOW = Pace(1e-10, 3e-11), Pace(4e-10, 12e-11)
ONE_HOST = {"host": "box"}


async def started(*nodes: str, **changes: Any) -> Coordinator:  # what a capability may be
    coordinator = await Coordinator().start(nodes=())
    for node_id in nodes:
        await coordinator.join(node_id, **changes)
    return coordinator


async def looked(coordinator: Coordinator, seconds: float = SETTLE_S + LOOK_EVERY_S) -> None:
    """Time passes, the measuring loop runs."""
    for _ in range(math.ceil(seconds / LOOK_EVERY_S)):
        await coordinator.advance(LOOK_EVERY_S)
        await coordinator.measuring.look()


def asked(coordinator: Coordinator, node_id: str) -> list[MeasureNode]:
    return [told for told in coordinator.workers[node_id].told if isinstance(told, MeasureNode)]


async def told(coordinator: Coordinator, node_id: str, **found: Any) -> None:
    message = NodeMeasured(**found)
    await coordinator.messages.handle(coordinator.tokens[node_id], message)


async def measured(coordinator: Coordinator, **paces: Pace) -> None:
    """Every question is answered, by nodes of these paces, until there are no more."""
    answered = {node_id: len(asked(coordinator, node_id)) for node_id in paces}
    is_over = False
    while not is_over:
        await looked(coordinator, LOOK_EVERY_S)
        is_over = True
        for node_id, pace in paces.items():
            for question in asked(coordinator, node_id)[answered[node_id] :]:
                answered[node_id] += 1
                is_over = False
                await told(coordinator, node_id, **answer(question, pace))


def answer(question: MeasureNode, pace: Pace) -> dict[str, Any]:
    stages = [replace(TIMES, start=ref.layers.start, end=ref.layers.end) for ref in question.stages]
    links = [PeerLink(ends.next.node_id, 0.001, 1e8) for ends in question.peers]
    return {"pace": pace if question.has_pace else None, "stages": tuple(stages), "links": tuple(links)}


async def ready(*nodes: str, **changes: Any) -> Coordinator:
    """The nodes have settled; nobody has been asked yet."""
    coordinator = await started(*nodes, **changes)
    await looked(coordinator, SETTLE_S)
    return coordinator


def capability_of(coordinator: Coordinator, node_id: str) -> NodeCapability:
    (view,) = [view for view in coordinator.members.nodes(with_stage_times=True).nodes if view.node_id == node_id]
    return view.capability


async def test_a_node_that_joins_is_measured_once_it_has_settled() -> None:
    coordinator = await ready(N1)
    assert asked(coordinator, N1) == []
    await measured(coordinator, **{N1: FAST})
    assert [question.has_pace for question in asked(coordinator, N1)] == [True] * MIN_TRIALS
    found = capability_of(coordinator, N1).measured
    assert found is not None
    assert found.pace == FAST
    await looked(coordinator, 2 * PATIENCE_S)
    assert len(asked(coordinator, N1)) == MIN_TRIALS


async def test_nodes_of_one_host_are_measured_in_turns() -> None:
    coordinator = await ready(N1, N2, **ONE_HOST)
    turns = []
    for _ in range(2 * MIN_TRIALS):
        before = {node_id: len(asked(coordinator, node_id)) for node_id in (N1, N2)}
        await looked(coordinator, 2 * LOOK_EVERY_S)
        turn = [node_id for node_id in (N1, N2) if len(asked(coordinator, node_id)) > before[node_id]]
        turns += turn
        for node_id in turn:
            await told(coordinator, node_id, **answer(asked(coordinator, node_id)[-1], FAST))
    assert turns == [N1, N2] * MIN_TRIALS


async def test_nodes_of_different_hosts_are_measured_at_once() -> None:
    coordinator = await ready(N1, N2)
    await looked(coordinator, LOOK_EVERY_S)
    assert [len(asked(coordinator, node)) for node in (N1, N2)] == [1, 1]


async def test_a_host_that_loads_a_stage_is_left_alone() -> None:
    coordinator = await ready(N1, N2, **ONE_HOST)
    coordinator.members.loading(N2, STAGE)
    await looked(coordinator)
    assert asked(coordinator, N1) == []
    coordinator.members.not_loading(N2, STAGE)
    await looked(coordinator, LOOK_EVERY_S)
    assert len(asked(coordinator, N1)) == 1


async def test_a_host_that_computes_for_a_session_is_left_alone() -> None:
    coordinator = await Coordinator().start(nodes=(N1, N2))
    await coordinator.open(make_task(), nodes=(N1,))
    await looked(coordinator)
    assert [len(asked(coordinator, node)) for node in (N1, N2)] == [0, 1]


async def test_a_stage_that_a_node_was_asked_to_hold_is_timed_when_it_is_there() -> None:
    coordinator = await ready(N1)
    await measured(coordinator, **{N1: FAST})
    coordinator.members.loading(N1, STAGE)
    coordinator.loaded[N1] = (STAGE,)
    await looked(coordinator, 2 * LOOK_EVERY_S)
    question = asked(coordinator, N1)[-1]
    assert question.stages == (STAGE,)
    assert not question.has_pace
    await told(coordinator, N1, stages=(TIMES, replace(TIMES, start=1)), pace=SLOW)
    await looked(coordinator, LOOK_EVERY_S)
    found = capability_of(coordinator, N1).measured
    assert found is not None
    assert found.stages == (TIMES,)  # about the other one nobody asked
    assert found.pace == FAST


async def test_plans_are_told_nothing_of_single_stages() -> None:
    """With them a few thousand nodes fill the largest body."""
    coordinator = await ready(N1)
    coordinator.members.loading(N1, STAGE)
    coordinator.loaded[N1] = (STAGE,)
    await measured(coordinator, **{N1: FAST})
    known = capability_of(coordinator, N1).measured
    assert known is not None
    assert known.stages == (TIMES,)
    (view,) = coordinator.members.nodes().nodes
    assert view.capability.measured == replace(known, stages=())


async def test_a_node_times_the_way_to_the_others_and_they_are_told_before() -> None:
    coordinator = await ready(N1, N2, N3)
    await measured(coordinator, **{N1: FAST, N2: FAST, N3: FAST})
    (question,) = [question for question in asked(coordinator, N1) if question.peers]
    assert {ends.next.node_id for ends in question.peers} == {N2, N3}
    met = [message.peers[0] for message in coordinator.workers[N2].told if isinstance(message, MeetPeers)]
    (ends,) = [ends for ends in met if ends.previous.node_id == N1]
    (own,) = [ends for ends in question.peers if ends.next.node_id == N2]
    assert ends.previous.link_token == own.next.link_token  # of the link from N1 to N2
    assert ends.next.link_token == own.previous.link_token
    assert ends.next.link_token != ends.previous.link_token


async def test_a_way_that_one_end_has_timed_is_not_timed_by_the_other() -> None:
    coordinator = await ready(N1, N2, **ONE_HOST)
    await measured(coordinator, **{N1: FAST, N2: FAST})
    assert [len(question.peers) for node in (N1, N2) for question in asked(coordinator, node)] == [0, 0, 0, 1, 0, 0, 0]


async def test_a_node_that_cannot_be_asked_is_asked_again_later() -> None:
    coordinator = await ready(N1)
    coordinator.workers[N1].is_away = True
    await looked(coordinator, LOOK_EVERY_S)
    coordinator.workers[N1].is_away = False
    await looked(coordinator, FIRST_WAIT_S - LOOK_EVERY_S)
    assert asked(coordinator, N1) == []
    await looked(coordinator, 2 * LOOK_EVERY_S)
    assert len(asked(coordinator, N1)) == 1


async def test_what_a_node_answers_to_another_coordinator_is_no_answer_to_this_one() -> None:
    coordinator = await ready(N1)
    coordinator.workers[N1].is_measuring = True
    await looked(coordinator, LOOK_EVERY_S)
    await told(coordinator, N1, pace=FAST)
    await looked(coordinator, LOOK_EVERY_S)
    assert await coordinator.profiles.changes(0) == ()
    coordinator.workers[N1].is_measuring = False
    await looked(coordinator, FIRST_WAIT_S)
    assert len(asked(coordinator, N1)) == 2


async def test_a_measuring_that_brings_nothing_is_tried_less_and_less_often() -> None:
    coordinator = await ready(N1)
    answered = 0
    for _ in range(40):
        await looked(coordinator, FIRST_WAIT_S)
        if len(asked(coordinator, N1)) > answered:
            answered += 1
            await told(coordinator, N1)
    assert 4 <= answered <= 7


async def test_a_node_that_never_answers_holds_up_the_others_of_its_host_for_a_while_only() -> None:
    coordinator = await ready(N1, N2, **ONE_HOST)
    await looked(coordinator, LOOK_EVERY_S)
    assert [len(asked(coordinator, node)) for node in (N1, N2)] == [1, 0]
    await looked(coordinator, PATIENCE_S + 2 * LOOK_EVERY_S)  # meanwhile both send heartbeats
    assert [len(asked(coordinator, node)) for node in (N1, N2)] == [1, 1]


async def test_a_node_that_answers_with_nonsense_does_not_hold_up_the_others_of_its_host() -> None:
    coordinator = await ready(N1, N2, **ONE_HOST)
    await looked(coordinator, LOOK_EVERY_S)
    with pytest.raises(ProtocolViolation):
        await told(coordinator, N1, pace=Pace(math.nan, 1e-10))
    await looked(coordinator, LOOK_EVERY_S)
    assert [len(asked(coordinator, node)) for node in (N1, N2)] == [1, 1]


async def test_a_peer_that_cannot_be_reached_keeps_no_node_from_timing_its_stages() -> None:
    coordinator = await ready(N1, N2)
    for _ in range(MIN_TRIALS):
        await looked(coordinator, LOOK_EVERY_S)
        await told(coordinator, N1, pace=FAST)
    await looked(coordinator, LOOK_EVERY_S)
    assert [ends.next.node_id for ends in asked(coordinator, N1)[-1].peers] == [N2]
    await told(coordinator, N1)
    coordinator.members.loading(N1, STAGE)
    coordinator.loaded[N1] = (STAGE,)
    await looked(coordinator, 2 * LOOK_EVERY_S)
    question = asked(coordinator, N1)[-1]
    assert (question.stages, question.peers) == ((STAGE,), ())
    await told(coordinator, N1, stages=(TIMES,))
    await looked(coordinator, FIRST_WAIT_S)
    assert [ends.next.node_id for ends in asked(coordinator, N1)[-1].peers] == [N2]


async def test_what_nobody_asked_for_changes_nothing() -> None:
    coordinator = await ready(N1, N2)
    for _ in range(MIN_TRIALS):
        await told(coordinator, N1, pace=FAST)
    await looked(coordinator, LOOK_EVERY_S)
    assert capability_of(coordinator, N1).measured is None


async def test_nodes_that_were_not_measured_yet_are_taken_for_ones_like_the_others() -> None:
    coordinator = await ready(N1, N2, speed=1e15)
    await measured(coordinator, **{N1: SLOW})
    assert capability_of(coordinator, N2).speed == pytest.approx(SLOW.speed)
    assert capability_of(coordinator, N2).measured is None


async def test_equal_nodes_get_one_level_and_others_their_own() -> None:
    coordinator = await ready(N1, N2, N3)
    alike = Pace(FAST.decode_s_per_byte * 1.2, FAST.prefill_s_per_byte * 0.9)
    await measured(coordinator, **{N1: FAST, N2: alike, N3: SLOW})
    found = [capability_of(coordinator, node).measured for node in (N1, N2, N3)]
    assert [each.pace if each else None for each in found] == [FAST, FAST, SLOW]


async def test_a_worker_that_seems_slower_than_its_like_is_tried_more_often() -> None:
    coordinator = await ready(N1, N2, **ONE_HOST)
    await measured(coordinator, **{N1: FAST, N2: SLOW})
    trials = [[question for question in asked(coordinator, node) if question.has_pace] for node in (N1, N2)]
    assert list(map(len, trials)) == [MIN_TRIALS, MAX_TRIALS]


async def test_an_operator_has_a_node_measured_anew() -> None:
    coordinator = await ready(N1, N2)
    await measured(coordinator, **{N1: FAST, N2: FAST})
    before = len(asked(coordinator, N1))
    await coordinator.measuring.demand(N1)
    await looked(coordinator, LOOK_EVERY_S)
    assert len(asked(coordinator, N1)) == before + 1
    assert capability_of(coordinator, N1).speed == pytest.approx(FAST.speed)  # as long as there is nothing newer
    await told(coordinator, N1, **answer(asked(coordinator, N1)[-1], SLOW))
    await measured(coordinator, **{N1: SLOW})
    assert capability_of(coordinator, N1).speed < capability_of(coordinator, N2).speed / 2
    with pytest.raises(NodeNotFound):
        await coordinator.measuring.demand(NodeId("nobody"))


@pytest.mark.parametrize(
    "found",
    [
        {"pace": Pace(math.inf, 1e-10)},
        {"pace": Pace(1e-10, -1.0)},
        {"stages": (TIMES, TIMES)},
        {"stages": (replace(TIMES, decode=(CallTime(10**400, 0.01, 0.01, 1),)),)},
        {"links": (PeerLink(N1, 0.1, 1e6),)},
    ],
)
async def test_figures_that_no_node_has_are_refused(found: dict[str, object]) -> None:
    coordinator = await started(N1)
    await looked(coordinator)
    with pytest.raises(ProtocolViolation):
        await told(coordinator, N1, **found)
    await looked(coordinator, LOOK_EVERY_S)
    assert await coordinator.profiles.changes(0) == ()


async def test_a_worker_does_not_say_by_itself_how_fast_it_is() -> None:
    coordinator = await started(N1, measured=Measured(FAST))
    assert capability_of(coordinator, N1).measured is None


async def test_drift_of_a_node_with_a_host_of_its_own_is_kept() -> None:
    coordinator = await ready(N1)
    await measured(coordinator, **{N1: FAST})
    await coordinator.messages.handle(coordinator.tokens[N1], Heartbeat(boot_id="boot-1", drift=Drift(1.5, 1.1)))
    await coordinator.measuring.look()
    found = capability_of(coordinator, N1).measured
    assert found is not None
    assert found.drift == 1.5
    await coordinator.messages.handle(coordinator.tokens[N1], Heartbeat(boot_id="boot-1"))  # it had no calls for long
    await coordinator.measuring.look()
    assert capability_of(coordinator, N1).measured == replace(found, drift=1.0)


class TimedCluster(Cluster):
    """A receipt of an auditor takes its time."""

    takes_s: dict[str, float]

    async def _post(self, node_id: str, message: DraftTokens | ReceiptPosted) -> None:
        if isinstance(message, ReceiptPosted) and message.lane > 0:
            await self.coordinator.advance(self.takes_s[node_id])
        await super()._post(node_id, message)


async def test_a_node_that_claims_more_than_it_does_is_found_out_by_what_it_signs() -> None:
    coordinator = await ready(N1, N2, N3)
    boast = Pace(FAST.decode_s_per_byte / 20, FAST.prefill_s_per_byte / 20)
    await measured(coordinator, **{N1: FAST, N2: FAST, N3: boast})
    assert capability_of(coordinator, N3).speed > 10 * capability_of(coordinator, N1).speed
    cluster = TimedCluster(coordinator)
    cluster.takes_s = {N1: 0.1, N2: 0.1, N3: 0.1}
    task = make_task(verification=Verification.AUDIT, max_byzantine=1, max_tokens=120)
    await coordinator.open(task)
    await cluster.run()
    await coordinator.measuring.look()
    assert capability_of(coordinator, N3).speed == pytest.approx(capability_of(coordinator, N1).speed)
    await coordinator.join(N3, boot_id="boot-2")  # what was seen of another run says nothing about this one
    await looked(coordinator, LOOK_EVERY_S)
    await measured(coordinator, **{N1: FAST, N2: FAST, N3: FAST})
    assert capability_of(coordinator, N3).speed == pytest.approx(capability_of(coordinator, N1).speed)


async def test_an_operator_need_not_wait_for_the_next_try_of_a_node_that_failed() -> None:
    coordinator = await ready(N1, N2)
    await measured(coordinator, **{N1: FAST, N2: FAST})
    await coordinator.measuring.demand(N1)
    await looked(coordinator, LOOK_EVERY_S)
    before = len(asked(coordinator, N1))
    await told(coordinator, N1)  # it could not
    await looked(coordinator, LOOK_EVERY_S)
    assert len(asked(coordinator, N1)) == before
    await coordinator.measuring.demand(N1)
    await looked(coordinator, LOOK_EVERY_S)
    assert len(asked(coordinator, N1)) == before + 1


async def test_ways_that_the_others_timed_to_a_node_are_timed_anew_as_well() -> None:
    coordinator = await ready(N1, N2)
    await measured(coordinator, **{N1: FAST, N2: FAST})
    before = [sum(bool(question.peers) for question in asked(coordinator, node)) for node in (N1, N2)]
    assert sum(before) >= 1
    for node in (N1, N2):
        await coordinator.measuring.demand(NodeId(node))
        assert all(capability_of(coordinator, each).measured for each in (N1, N2))
        await measured(coordinator, **{N1: FAST, N2: FAST})
        now = [sum(bool(question.peers) for question in asked(coordinator, each)) for each in (N1, N2)]
        assert sum(now) > sum(before)
        before = now


async def test_a_node_that_was_started_anew_is_tried_anew_and_keeps_its_level_until_then() -> None:
    coordinator = await ready(N1)
    await measured(coordinator, **{N1: FAST})
    coordinator.loaded[N1] = (STAGE,)
    coordinator.members.loading(N1, STAGE)
    await measured(coordinator, **{N1: FAST})
    assert capability_of(coordinator, N1).measured == Measured(FAST, stages=(TIMES,))
    await coordinator.join(N1, boot_id="boot-2", cores=8)
    assert capability_of(coordinator, N1).speed == FAST.speed  # at once: plans go on by it
    await looked(coordinator, SETTLE_S)
    assert capability_of(coordinator, N1).measured == Measured(FAST)
    quick = Pace(FAST.decode_s_per_byte / 4, FAST.prefill_s_per_byte / 4)
    coordinator.members.loading(N1, STAGE)
    await measured(coordinator, **{N1: quick})
    assert capability_of(coordinator, N1).measured == Measured(quick, stages=(TIMES,))


async def test_figures_hold_before_anybody_is_asked_and_nobody_waits_for_another_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = await ready(N1, N2)
    await measured(first, **{N1: FAST, N2: FAST})
    coordinator = Coordinator(profiles=first.profiles)
    for node_id in (N1, N2):
        await coordinator.join(node_id, boot_id="boot-2")
    await looked(coordinator, SETTLE_S)
    assert capability_of(coordinator, N1).measured is not None
    hung = asyncio.Event()
    monkeypatch.setattr(coordinator.workers[N1], "measure", lambda _: hung.wait())
    await coordinator.advance(LOOK_EVERY_S)
    look = asyncio.create_task(coordinator.measuring.look())
    await coordinator.settle()
    assert len(asked(coordinator, N2)) == 1
    hung.set()
    await look


async def test_nothing_is_kept_of_nodes_of_which_nothing_is_known_or_that_left_long_ago() -> None:
    coordinator = await ready(N1, N2)
    await measured(coordinator, **{N1: FAST})
    assert [profile.node_id for _, profile in await coordinator.profiles.changes(0)] == [N1]
    await coordinator.lose(N1)
    for days, is_kept in ((KEPT_DAYS, True), (2, False)):
        coordinator.clock._wall_offset_s += days * 86_400
        await looked(coordinator, 2 * LOOK_EVERY_S)
        assert bool(await coordinator.profiles.changes(0)) is is_kept


async def test_a_demand_at_another_replica_ends_what_the_first_has_not_saved() -> None:
    first = await ready(N1)
    other = Coordinator(profiles=first.profiles, is_first=False)
    await other.join(N1)
    await measured(first, **{N1: FAST})
    await looked(other, LOOK_EVERY_S)
    await first.messages.handle(first.tokens[N1], Heartbeat(boot_id="boot-1", drift=Drift(3.0, 3.0)))
    await other.measuring.demand(N1)
    before = len(asked(first, N1))
    await looked(first, LOOK_EVERY_S)
    assert len(asked(first, N1)) == before + 1


async def test_a_demand_that_another_replica_crosses_is_not_lost() -> None:
    first = await ready(N1)
    other = Coordinator(profiles=first.profiles, is_first=False)
    await other.join(N1)
    await measured(first, **{N1: FAST})  # the other one has not heard of it
    await other.measuring.demand(N1)
    before = len(asked(first, N1))
    await looked(first, LOOK_EVERY_S)
    assert len(asked(first, N1)) == before + 1


async def test_other_replicas_ask_nobody_and_hear_what_was_found() -> None:
    first = await ready(N1, N2)
    other = Coordinator(profiles=first.profiles, is_first=False)
    for node_id in (N1, N2):
        await other.join(node_id)
    await looked(other, 2 * SETTLE_S)
    assert asked(other, N1) == []
    await measured(first, **{N1: FAST, N2: SLOW})
    await told(other, N1, pace=SLOW)  # workers tell all of them
    await looked(other, LOOK_EVERY_S)
    for node_id in (N1, N2):
        assert capability_of(other, node_id).measured == capability_of(first, node_id).measured


async def test_a_coordinator_that_is_started_again_knows_what_was_found() -> None:
    before = await ready(N1)
    await measured(before, **{N1: FAST})
    again = Coordinator(profiles=before.profiles)
    await again.join(N1)
    await looked(again, LOOK_EVERY_S)
    assert capability_of(again, N1).measured == capability_of(before, N1).measured
    await looked(again, 2 * SETTLE_S)
    assert asked(again, N1) == []


async def test_while_the_registry_is_away_what_was_found_holds() -> None:
    coordinator = await ready(N1)
    coordinator.profiles.is_away = True
    for _ in range(3):
        with pytest.raises(RegistryUnavailable):
            await coordinator.measuring.look()
    assert asked(coordinator, N1) == []
    coordinator.profiles.is_away = False
    await measured(coordinator, **{N1: FAST})
    assert capability_of(coordinator, N1).speed == pytest.approx(FAST.speed)
