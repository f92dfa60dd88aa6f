"""What workers say: who may say what, and what happens to lies, repetitions and late words."""

import math
from dataclasses import replace

import pytest

from shared.contracts.messages import Ack, DraftTokens, Heartbeat, LinkFault, SeatReady, SessionFault, SessionPosition
from shared.domain.errors import Forbidden, NodeNotFound, ProtocolViolation, StaleEpoch
from shared.domain.ids import Epoch, NodeId
from shared.domain.session import NodeState, SessionPhase
from shared.domain.task import InferenceTask, SamplerParams
from tests.fakes.identities import N1, N2, N3, N4
from tests.fakes.tasks import make_task, make_token
from tests.unit.coordinator.harness import Coordinator


async def say(coordinator: Coordinator, node_id: str, message: DraftTokens) -> Ack:
    try:
        return await coordinator.messages.handle(coordinator.tokens[node_id], message)
    finally:
        await coordinator.settle()


async def test_an_unknown_token_is_told_to_register_again(coordinator: Coordinator) -> None:
    with pytest.raises(NodeNotFound):
        await coordinator.messages.handle("made up", Heartbeat(boot_id="boot-1"))


async def test_a_heartbeat_of_another_run_is_told_to_register_again(coordinator: Coordinator) -> None:
    with pytest.raises(NodeNotFound):
        await coordinator.messages.handle(coordinator.tokens[N1], Heartbeat(boot_id="boot-0"))


async def test_an_earlier_token_of_a_node_ends_when_it_registers_again(coordinator: Coordinator) -> None:
    earlier = coordinator.tokens[N1]
    await coordinator.join(N1, boot_id="boot-2")
    with pytest.raises(NodeNotFound):
        await coordinator.messages.handle(earlier, Heartbeat(boot_id="boot-1"))


async def test_drafts_of_a_node_that_does_not_hold_the_last_stage_are_forbidden(coordinator: Coordinator) -> None:
    task = make_task()
    session = await coordinator.open(task)
    for node_id in (N1, N2):
        with pytest.raises(Forbidden):
            await say(coordinator, node_id, coordinator.drafts(task, 10))
    assert (session.records, session.phase, session.epoch) == ([], SessionPhase.PREFILLING, 1)


async def test_drafts_of_an_earlier_epoch_are_stale_and_their_sender_is_told_to_stop(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    late = coordinator.drafts(task, 10)
    await coordinator.join(N1, boot_id="boot-2")
    await coordinator.settle()
    with pytest.raises(StaleEpoch):
        await say(coordinator, N3, late)
    assert coordinator.session(task).records == []
    assert [(stop.epoch, stop.reason) for stop in coordinator.workers[N3].stops()][-1] == (1, "stale")


async def test_drafts_without_a_session_are_stale(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=1)
    await coordinator.open(task)
    late = coordinator.drafts(task, 10)
    await say(coordinator, N3, late)
    with pytest.raises(StaleEpoch):
        await say(coordinator, N3, late)


async def test_drafts_of_an_epoch_that_has_not_begun_break_the_rules(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    with pytest.raises(ProtocolViolation):
        await say(coordinator, N3, coordinator.drafts(task, 10, epoch=7))
    assert coordinator.session(task).epoch == 1


async def test_stale_drafts_spoil_no_others_of_the_same_message(coordinator: Coordinator) -> None:
    ended, going_on = make_task(max_tokens=1), make_task()
    await coordinator.open(ended)
    await coordinator.open(going_on)
    late = coordinator.drafts(ended, 10).drafts[0]
    await coordinator.draft(ended, 10)
    message = DraftTokens(drafts=(late, coordinator.drafts(going_on, 20).drafts[0]))
    assert await say(coordinator, N3, message) == Ack()
    assert await coordinator.token_ids(going_on) == [20]


async def test_a_second_delivery_of_drafts_adds_nothing(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    message = coordinator.drafts(task, 10, 11)
    await say(coordinator, N3, message)
    await say(coordinator, N3, message)
    await say(coordinator, N3, coordinator.drafts(task, 11, 12, first=1))
    assert await coordinator.token_ids(task) == [10, 11, 12]


async def refused_drafts(coordinator: Coordinator, task: InferenceTask, message: DraftTokens) -> None:
    """They break the rules: nothing is taken from them, and the session goes on without their sender."""
    with pytest.raises(ProtocolViolation):
        await say(coordinator, N3, message)
    session = coordinator.session(task)
    assert session.epoch == 2
    assert N3 not in [seat.node_id for seat in session.seats]


async def test_a_gap_in_drafts_costs_the_seat(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    await coordinator.draft(task, 10)
    await refused_drafts(coordinator, task, coordinator.drafts(task, 12, first=2))
    assert await coordinator.token_ids(task) == [10]


async def test_other_tokens_at_a_second_delivery_cost_the_seat(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    await coordinator.draft(task, 10)
    await refused_drafts(coordinator, task, coordinator.drafts(task, 11, first=0))


async def test_a_position_inside_the_prompt_costs_the_seat(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    await refused_drafts(coordinator, task, coordinator.drafts(task, 11, first=-1))


async def test_a_token_outside_the_vocabulary_costs_the_seat(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    await refused_drafts(coordinator, task, coordinator.drafts(task, 256))


async def test_more_tokens_than_asked_cost_the_seat(coordinator: Coordinator) -> None:
    task = make_task(max_tokens=2)
    await coordinator.open(task)
    await refused_drafts(coordinator, task, coordinator.drafts(task, 1, 2, 3))


async def test_a_logit_that_is_no_number_costs_the_seat(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    draft = coordinator.drafts(task, 10).drafts[0]
    broken = draft.model_copy(update={"records": (replace(make_token(10), logit=math.nan),)})
    await refused_drafts(coordinator, task, DraftTokens(drafts=(broken,)))


async def test_drafts_before_the_start_break_the_rules(coordinator: Coordinator) -> None:
    coordinator.workers[N1].is_cold = True
    task = make_task()
    await coordinator.open(task)
    with pytest.raises(ProtocolViolation):
        await say(coordinator, N3, coordinator.drafts(task, 10))


async def test_a_node_cannot_speak_for_the_seat_of_another(coordinator: Coordinator) -> None:
    coordinator.workers[N2].is_cold = True
    task = make_task()
    session = await coordinator.open(task)
    ready = SeatReady(task_id=task.task_id, epoch=Epoch(1), lane=0, stage=1)
    broken = SessionFault(task_id=task.task_id, epoch=Epoch(1), lane=0, stage=1, error_code="engine_fault", error="")
    for message in (ready, broken):
        with pytest.raises(Forbidden):
            await coordinator.messages.handle(coordinator.tokens[N1], message)
    assert (session.phase, session.epoch) == (SessionPhase.LOADING, 1)


async def test_lanes_and_choices_that_nobody_has_are_refused(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    draft = coordinator.drafts(task, 10).drafts[0]
    for change in ({"lane": 1}, {"choice": 1}):
        with pytest.raises(ProtocolViolation):
            await say(coordinator, N3, DraftTokens(drafts=(draft.model_copy(update=change),)))


async def test_a_node_that_still_holds_an_ended_session_is_told_to_forget_it(coordinator: Coordinator) -> None:
    task = make_task()
    coordinator.positions[N2] = (SessionPosition(task_id=task.task_id, epoch=Epoch(3), lane=0, stage=1, rows=5),)
    await coordinator.beat(N2)
    await coordinator.settle()
    assert [(stop.task_id, stop.epoch) for stop in coordinator.workers[N2].stops()] == [(task.task_id, 3)]


async def test_one_heartbeat_makes_the_coordinator_send_a_bounded_number_of_stops(coordinator: Coordinator) -> None:
    coordinator.positions[N2] = tuple(
        SessionPosition(task_id=make_task().task_id, epoch=Epoch(1), lane=0, stage=1, rows=5) for _ in range(100)
    )
    await coordinator.beat(N2)
    await coordinator.settle()
    assert len(coordinator.workers[N2].stops()) == 16


async def test_stale_drafts_make_the_coordinator_send_a_bounded_number_of_stops(coordinator: Coordinator) -> None:
    task = make_task()
    await coordinator.open(task)
    draft = coordinator.drafts(task, 10).drafts[0]
    stale = tuple(draft.model_copy(update={"task_id": make_task().task_id}) for _ in range(100))
    with pytest.raises(StaleEpoch):
        await say(coordinator, N3, DraftTokens(drafts=stale))
    assert len(coordinator.workers[N3].stops()) == 16
    with pytest.raises(StaleEpoch):
        await say(coordinator, N3, DraftTokens(drafts=stale[:1]))
    assert len(coordinator.workers[N3].stops()) == 17


@pytest.mark.parametrize(("asked", "given"), [(None, -0.5), (0, None)])
async def test_logprobs_where_none_were_asked_or_none_where_they_were_cost_the_seat(
    coordinator: Coordinator, asked: int | None, given: float | None
) -> None:
    task = make_task(sampler=SamplerParams(logprobs=asked))
    await coordinator.open(task)
    draft = coordinator.drafts(task, 10).drafts[0]
    other = draft.model_copy(update={"records": (replace(make_token(10), logprob=given),)})
    await refused_drafts(coordinator, task, DraftTokens(drafts=(other,)))


async def test_a_third_refused_message_in_ten_minutes_puts_its_sender_in_quarantine(coordinator: Coordinator) -> None:
    task = make_task()
    session = await coordinator.open(task)
    nobodys = SeatReady(task_id=task.task_id, epoch=session.epoch, lane=5, stage=0)
    for seen_before in (NodeState.READY, NodeState.READY, NodeState.READY):
        assert state_of(coordinator, N1) is seen_before
        with pytest.raises(ProtocolViolation):
            await coordinator.messages.handle(coordinator.tokens[N1], nobodys)
    assert state_of(coordinator, N1) is NodeState.QUARANTINED
    await coordinator.advance(61)
    assert state_of(coordinator, N1) is NodeState.READY  # it proved nothing


async def test_bodies_that_are_no_messages_count_as_well(coordinator: Coordinator) -> None:
    for _ in range(3):
        await coordinator.messages.unreadable(coordinator.tokens[N1])
    assert state_of(coordinator, N1) is NodeState.QUARANTINED


async def test_one_accuser_puts_nobody_but_itself_in_quarantine(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    for neighbours in ((N1, N2), (N1, N3), (N1, N4)):
        task = make_task()
        await coordinator.open(task, neighbours)
        for _ in range(3):
            accusation = LinkFault(peer=neighbours[1], outgoing=False, kind="refused", reason="NaN")
            await coordinator.messages.handle(coordinator.tokens[N1], accusation)
        coordinator.sessions.cancel(task.task_id)
        await coordinator.settle()
    assert [state_of(coordinator, node_id) for node_id in (N1, N2, N3, N4)] == [
        NodeState.QUARANTINED,
        NodeState.READY,
        NodeState.READY,
        NodeState.READY,
    ]


async def test_accusing_a_node_that_is_no_neighbour_marks_nobody(coordinator: Coordinator) -> None:
    for node_id in (N2, N3, N4):
        accusation = LinkFault(peer=node_id, outgoing=False, kind="refused", reason="NaN")
        await coordinator.messages.handle(coordinator.tokens[N1], accusation)
    assert state_of(coordinator, N1) is NodeState.READY


def state_of(coordinator: Coordinator, node_id: str) -> NodeState:
    member = coordinator.members.find(NodeId(node_id))
    assert member is not None
    return member.state
