"""The coordinator has nodes measured, one at a time on each host, and only while nobody needs them."""

import math
from dataclasses import replace

import pytest

from services.coordinator.domain.profile import MAX_TRIALS, MIN_TRIALS
from services.coordinator.domain.retries import FIRST_WAIT_S
from services.coordinator.service.measuring import LOOK_EVERY_S, PATIENCE_S
from shared.contracts.messages import (
    MeetPeers,
)
from shared.domain.errors import NodeNotFound, ProtocolViolation
from shared.domain.ids import NodeId
from shared.domain.measured import Pace
from tests.fakes.identities import N1, N2, N3
from tests.fakes.tasks import make_task
from tests.unit.coordinator.harness import Coordinator
from tests.unit.coordinator.measuring import (
    FAST,
    ONE_HOST,
    SLOW,
    STAGE,
    TIMES,
    answer,
    asked,
    capability_of,
    looked,
    measured,
    ready,
    told,
)


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


async def test_a_replica_that_is_not_the_first_any_more_waits_for_no_answer() -> None:
    coordinator = await ready(N1)
    host = capability_of(coordinator, N1).machine
    await looked(coordinator, LOOK_EVERY_S)
    assert coordinator.measuring.is_measuring(host)
    coordinator.is_first = False
    assert not coordinator.measuring.is_measuring(host)
