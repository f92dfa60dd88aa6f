"""Verified sessions: nothing is committed before enough nodes signed the same, and who signs something else goes."""

import itertools
from dataclasses import replace

import pytest

from shared.contracts.coordinator import OpenSession
from shared.contracts.messages import SessionStart, WindowCommitted, WindowRelease
from shared.domain.bundle import Bundle, TrustedKeys, check_bundle, committed_entries
from shared.domain.errors import InvalidPlanInput
from shared.domain.ids import NodeId
from shared.domain.numerics import Profile
from shared.domain.receipt import Assignment
from shared.domain.session import NodeState
from shared.domain.task import FinishReason, InferenceTask, StopRules, TokenRecord, Verification
from shared.domain.task_state import TaskState
from shared.events.catalogue import ConsensusReached, GuaranteeReduced, NodeFailure, TokensCommitted, TokensDrafted
from tests.fakes.identities import COORDINATOR_KEY, N1, N2, N3, N4, N5, N6
from tests.fakes.partitioner import even_plan
from tests.fakes.signing_workers import Conduct, true_tokens
from tests.fakes.tasks import make_task
from tests.unit.coordinator.cluster import Cluster
from tests.unit.coordinator.harness import NODES, Coordinator

SIX = (N1, N2, N3, N4, N5, N6)


def audited(**changes: object) -> InferenceTask:
    values: dict[str, object] = {"verification": Verification.AUDIT, "max_byzantine": 1, "max_tokens": 20}
    return make_task(**(values | changes))


def wrong_rows(
    node_id: NodeId, *, from_row: int = 0, epochs: tuple[int, ...] | None = None, lanes: tuple[int, ...] = (0, 1, 2)
) -> Conduct:
    """Makes something else of every row from a row on, at the seats it has in these lanes and epochs."""

    def distort(seat: Assignment, row: int, data: bytes) -> bytes:
        is_lying = seat.node_id == node_id and row >= from_row and seat.lane in lanes
        is_lying &= epochs is None or seat.epoch in epochs
        return bytes([data[0] ^ 1]) + data[1:] if is_lying else data

    return Conduct(make=distort)


def expected(task: InferenceTask) -> list[int]:
    return true_tokens(task.prompt_ids, task.max_tokens)


def state_of(coordinator: Coordinator, node_id: str) -> NodeState:
    return next(view.state for view in coordinator.members.nodes().nodes if view.node_id == node_id)


async def completed(coordinator: Coordinator, task: InferenceTask) -> bool:
    """With the right tokens; of a verified task also with a proof that holds without the cluster."""
    tokens = await coordinator.token_ids(task)
    if task.verification is not Verification.NONE:
        await check_proof(coordinator, task, tokens)
    return await coordinator.state(task) is TaskState.COMPLETED and tokens == expected(task)


async def check_proof(coordinator: Coordinator, task: InferenceTask, tokens: list[int]) -> None:
    entries = await coordinator.receipts.entries(task.task_id)
    bundle = Bundle(
        task_id=task.task_id,
        choice=0,
        model_id=task.model_id,
        profile=Profile.EXACT,
        mode=task.verification,
        f=task.max_byzantine,
        complete=True,
        finish_reason=(await coordinator.record(task)).finish_reason,
        sampler=task.sampler,
        prompt_ids=task.prompt_ids,
        answer_ids=tuple(tokens),
        entries=committed_entries(entries, num_tokens=len(tokens), has_completed=True),
    )
    trusted = TrustedKeys(COORDINATOR_KEY.public_key)
    assert check_bundle(bundle, trusted=trusted).num_tokens == len(tokens)


async def test_an_honest_audited_session_gives_the_right_tokens_and_keeps_an_entry_for_each_window(
    coordinator: Coordinator,
) -> None:
    task, cluster = audited(), Cluster(coordinator)
    await coordinator.open(task)
    await cluster.run()
    assert await completed(coordinator, task)
    entries = await coordinator.receipts.entries(task.task_id)
    assert [entry.window for entry in entries] == list(range(len(entries)))
    assert (entries[0].row_start, entries[-1].num_tokens) == (0, 20)
    assert [len(entry.receipts) for entry in entries] == [6] * len(entries)
    assert [event.rounds for event in coordinator.events.of(ConsensusReached)] == [1] * len(entries)
    assert cluster.refusals == []
    assert not coordinator.has_session(task)


async def test_operators_hear_of_drafts_and_how_long_they_waited_for_their_commit(coordinator: Coordinator) -> None:
    task, cluster = audited(), Cluster(coordinator)
    await coordinator.open(task)
    cluster.stopped.add(1)
    await cluster.run()
    drafted = coordinator.events.of(TokensDrafted)
    assert [event.first_index for event in drafted] == list(
        itertools.accumulate((len(event.token_ids) for event in drafted[:-1]), initial=0)
    )
    await coordinator.clock.advance(1.0)
    cluster.stopped.clear()
    await cluster.run()
    assert await completed(coordinator, task)
    drafted = coordinator.events.of(TokensDrafted)
    assert [token for event in drafted for token in event.token_ids] == await coordinator.token_ids(task)
    committed = coordinator.events.of(TokensCommitted)
    assert sum(event.num_tokens for event in committed) == 20
    assert committed[0].waited_ms == pytest.approx(1000)


async def test_every_lane_is_started_and_only_lane_0_decodes(coordinator: Coordinator) -> None:
    task = audited()
    await coordinator.open(task)
    orders = [order for node in NODES for order in coordinator.workers[node].assignments()]
    assert sorted((order.lane, order.stage) for order in orders) == [
        (lane, stage) for lane in (0, 1) for stage in range(3)
    ]
    assert {(order.lane, order.decodes, order.max_windows_ahead) for order in orders} == {(0, True, 2), (1, False, 0)}
    starts = [start.lane for node in NODES for start in coordinator.workers[node].heard(SessionStart)]  # type: ignore[union-attr]
    assert sorted(starts) == [0, 1]


async def test_nothing_is_committed_before_the_audit_lane_has_signed(coordinator: Coordinator) -> None:
    task, cluster = audited(), Cluster(coordinator)
    session = await coordinator.open(task)
    cluster.stopped.add(1)
    await cluster.run()
    assert len(session.records) > 0
    assert await coordinator.token_ids(task) == []
    assert coordinator.workers[N3].heard(WindowRelease)
    assert not coordinator.workers[N1].heard(WindowCommitted)
    cluster.stopped.clear()
    await cluster.run()
    assert await completed(coordinator, task)


async def test_lane_0_drafts_no_further_than_two_windows_ahead(coordinator: Coordinator) -> None:
    task, cluster = audited(max_tokens=60), Cluster(coordinator)
    session = await coordinator.open(task)
    cluster.stopped.add(1)
    await cluster.run()
    assert len(session.records) <= 1 + 2


async def test_no_audit_lane_gets_ids_before_every_stage_of_lane_0_signed(coordinator: Coordinator) -> None:
    task, cluster = audited(), Cluster(coordinator)
    await coordinator.open(task)
    cluster.mute.add(N2)
    await cluster.run()
    assert not any(coordinator.workers[node].heard(WindowRelease) for node in NODES)
    assert await coordinator.token_ids(task) == []


@pytest.mark.parametrize("liar", NODES)
@pytest.mark.parametrize("from_row", [0, 2, 7])
async def test_a_liar_is_convicted_and_evicted_and_the_answer_is_right(
    coordinator: Coordinator, liar: NodeId, from_row: int
) -> None:
    task = audited()
    cluster = Cluster(coordinator, conduct=wrong_rows(liar, from_row=from_row))
    await coordinator.open(task)
    await cluster.run()
    assert await completed(coordinator, task)
    assert state_of(coordinator, liar) is NodeState.EVICTED
    assert {view.node_id for view in coordinator.members.nodes().nodes if view.state is NodeState.READY} == {*NODES} - {
        liar
    }
    failures = coordinator.events.of(NodeFailure)
    assert [failure.node_id for failure in failures] == [liar]
    evidence = coordinator.evidence.kept[failures[0].evidence]
    assert (evidence["node_id"], evidence["rule"]) == (liar, 6)
    assert (await coordinator.record(task)).num_disputes == 1  # its second try is part of it


async def test_where_three_nodes_make_three_things_of_equal_rows_others_are_asked(coordinator: Coordinator) -> None:
    """Two of them lie, each in its own way: more than f = 1, and still nothing wrong is committed."""
    for node_id in (N4, N5, N6):
        await coordinator.join(node_id)
    liars: dict[NodeId, int] = {N2: 1}  # the executor of stage 1, and then the first referee

    def distort(seat: Assignment, row: int, data: bytes) -> bytes:
        if (seat.epoch, seat.lane, seat.stage) == (2, 2, 1):
            liars.setdefault(seat.node_id, 2)
        is_lying = seat.stage == 1 and row >= 3
        return bytes([data[0] ^ liars.get(seat.node_id, 0)]) + data[1:] if is_lying else data

    task = audited()
    cluster = Cluster(coordinator, conduct=Conduct(make=distort))
    session = await coordinator.open(task)
    honest = session.lanes[1][1].node_id
    await cluster.run()
    assert await completed(coordinator, task)
    assert len(liars) == 2
    assert {node for node in SIX if state_of(coordinator, node) is NodeState.EVICTED} == set(liars)
    assert {node for node in SIX if state_of(coordinator, node) is NodeState.QUARANTINED} == {honest}
    assert {failure.node_id for failure in coordinator.events.of(NodeFailure)} == set(liars)
    record = await coordinator.record(task)
    assert (record.num_disputes, record.epoch) == (1, 4)  # two tries, and the rest of the answer


async def test_who_is_convicted_in_another_session_is_no_dispute_any_more(coordinator: Coordinator) -> None:
    """Of three nodes two are left: too few for a referee, and enough for the answer."""
    task = audited()
    cluster = Cluster(coordinator, conduct=wrong_rows(N2))
    await coordinator.open(task)
    coordinator.partitioner.is_away = True  # until then there is no second try
    await cluster.run()
    await coordinator.members.evict(N2, "ev-1", "it lied to others")
    del coordinator.tokens[N2]  # it is heard no more
    coordinator.partitioner.is_away = False
    await coordinator.advance(1)
    await cluster.run()
    assert await completed(coordinator, task)
    states = {view.node_id: view.state for view in coordinator.members.nodes().nodes}
    assert states == {N1: NodeState.READY, N2: NodeState.EVICTED, N3: NodeState.READY}


async def test_nothing_of_a_window_in_dispute_is_committed(coordinator: Coordinator) -> None:
    task = audited()
    cluster = Cluster(coordinator, conduct=wrong_rows(N2, from_row=4))
    await coordinator.open(task)
    coordinator.partitioner.is_away = True  # no second try
    await cluster.run()
    tokens = await coordinator.token_ids(task)
    assert tokens == expected(task)[: len(tokens)]
    assert len(tokens) < 4
    assert state_of(coordinator, N2) is NodeState.READY


@pytest.mark.parametrize("lane", [0, 1])
async def test_a_liar_that_is_honest_again_when_asked_twice_is_convicted_by_its_first_word(
    coordinator: Coordinator, lane: int
) -> None:
    task = audited()
    cluster = Cluster(coordinator, conduct=wrong_rows(N3, from_row=3, epochs=(1,), lanes=(lane,)))
    await coordinator.open(task)
    await cluster.run()
    assert await completed(coordinator, task)
    assert state_of(coordinator, N3) is NodeState.EVICTED
    assert 2 in [event.rounds for event in coordinator.events.of(ConsensusReached)]


async def test_an_evicted_node_leaves_fewer_guarantees_and_that_is_told(coordinator: Coordinator) -> None:
    task = audited()
    cluster = Cluster(coordinator, conduct=wrong_rows(N1))
    await coordinator.open(task)
    await cluster.run()
    assert [(event.blind, event.spare) for event in coordinator.events.of(GuaranteeReduced)][-1:] == [(False, 0)]


async def test_a_lost_auditor_convicts_nobody(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task, cluster = audited(), Cluster(coordinator)
    session = await coordinator.open(task)
    cluster.stopped.add(1)
    await cluster.run()
    await coordinator.lose(N3)
    await coordinator.advance(3)
    cluster.stopped.clear()
    await cluster.run()
    assert session.epoch == 2
    assert await completed(coordinator, task)
    assert [failure.reason for failure in coordinator.events.of(NodeFailure)] == ["lease"]
    assert coordinator.evidence.kept == {}


async def test_a_loss_in_the_middle_goes_on_from_the_last_committed_window(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task, cluster = audited(max_tokens=30), Cluster(coordinator)
    session = await coordinator.open(task)
    cluster.mute.add(N2)
    await cluster.run()
    cluster.mute.clear()
    await coordinator.lose(N2)
    await coordinator.advance(3)
    await cluster.run()
    assert session.epoch == 2
    assert await completed(coordinator, task)


async def test_committed_windows_are_not_computed_for_receipts_again_after_a_loss(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task, cluster = audited(max_tokens=20), Cluster(coordinator)

    def stop_at_row_6(seat: Assignment, row: int, data: bytes) -> bytes:
        if seat.lane == 1 and row >= 6 and seat.epoch == 1:
            cluster.stopped.add(1)
        return data

    cluster.conduct = Conduct(make=stop_at_row_6)
    await coordinator.open(task)
    await cluster.run()
    committed = len(await coordinator.token_ids(task))
    assert committed > 0
    await coordinator.lose(N1)
    await coordinator.advance(3)
    cluster.stopped.clear()
    await cluster.run()
    assert await completed(coordinator, task)
    entries = await coordinator.receipts.entries(task.task_id)
    assert [entry.window for entry in entries] == list(range(len(entries)))
    assert all(later.row_start == earlier.row_end for earlier, later in itertools.pairwise(entries))
    assert {entry.epoch for entry in entries} == {1, 2}


async def test_a_node_that_posts_no_receipts_costs_its_seat_and_is_not_accused(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task, cluster = audited(), Cluster(coordinator)
    await coordinator.open(task)
    cluster.mute.add(N2)
    await cluster.run()
    await coordinator.advance(7)
    await cluster.run()
    assert await completed(coordinator, task)
    assert coordinator.events.of(NodeFailure) == []


async def test_a_stop_string_ends_the_answer_when_its_window_is_committed(coordinator: Coordinator) -> None:
    tokens = expected(audited())
    end = next(end for end in range(2, len(tokens)) if max(tokens[end - 2 : end]) < 128)
    task = audited(stop=StopRules(strings=(bytes(tokens[end - 2 : end]).decode("ascii"),)))
    cluster = Cluster(coordinator)
    await coordinator.open(task)
    await cluster.run()
    record = await coordinator.record(task)
    assert (record.state, record.finish_reason) == (TaskState.COMPLETED, FinishReason.STOP)
    assert await coordinator.token_ids(task) == tokens[:end]
    await check_proof(coordinator, task, tokens[:end])


async def test_an_end_token_ends_a_verified_answer(coordinator: Coordinator) -> None:
    tokens = expected(audited())
    task = audited(stop=StopRules(end_ids=(tokens[9],)))
    cluster = Cluster(coordinator)
    await coordinator.open(task)
    await cluster.run()
    assert await coordinator.token_ids(task) == tokens[: tokens.index(tokens[9]) + 1]
    assert await coordinator.state(task) is TaskState.COMPLETED


async def test_an_answer_of_one_token_is_verified_by_its_prompt_alone(coordinator: Coordinator) -> None:
    task, cluster = audited(max_tokens=1), Cluster(coordinator)
    await coordinator.open(task)
    await cluster.run()
    assert await completed(coordinator, task)


async def test_an_adopted_session_goes_on_with_all_lanes(coordinator: Coordinator) -> None:
    task, cluster = audited(max_tokens=20), Cluster(coordinator)

    def stop_at_row_6(seat: Assignment, row: int, data: bytes) -> bytes:
        if seat.lane == 1 and row >= 6:
            cluster.stopped.add(1)
        return data

    cluster.conduct = Conduct(make=stop_at_row_6)
    await coordinator.open(task)
    await cluster.run()
    committed = await coordinator.token_ids(task)
    assert 0 < len(committed) < 20
    await coordinator.stop()
    again = await Coordinator(
        clock=coordinator.clock, registry=coordinator.registry, receipts=coordinator.receipts, boot_id="run-2"
    ).start()
    other = Cluster(again)
    await again.advance(4)
    await other.run()
    assert await completed(again, task)
    windows = [entry.window for entry in await again.receipts.entries(task.task_id)]
    assert windows == list(range(len(windows)))
    await again.stop()


async def test_a_session_without_verification_commits_drafts_and_keeps_receipts_of_lane_0(
    coordinator: Coordinator,
) -> None:
    task = make_task(max_tokens=20)
    cluster = Cluster(coordinator)
    cluster.mute.add(N2)
    await coordinator.open(task)
    await cluster.run()
    assert await completed(coordinator, task)
    assert await coordinator.receipts.entries(task.task_id) == ()

    other, honest_cluster = make_task(max_tokens=20), Cluster(coordinator)
    await coordinator.open(other)
    await honest_cluster.run()
    assert await completed(coordinator, other)
    entries = await coordinator.receipts.entries(other.task_id)
    assert [entry.window for entry in entries][:2] == [0, 1]
    assert [len(entry.receipts) for entry in entries] == [3] * len(entries)
    assert coordinator.events.of(ConsensusReached) == []


async def test_three_lanes_that_decode_freely_commit_what_two_agree_on(coordinator: Coordinator) -> None:
    task, cluster = audited(verification=Verification.QUORUM), Cluster(coordinator)
    await coordinator.open(task)
    await cluster.run()
    assert await completed(coordinator, task)


@pytest.mark.parametrize("liar", NODES)
async def test_a_liar_among_free_lanes_is_evicted(coordinator: Coordinator, liar: NodeId) -> None:
    await coordinator.join(N4)
    task = audited(verification=Verification.QUORUM)
    cluster = Cluster(coordinator, conduct=wrong_rows(liar, from_row=3))
    await coordinator.open(task)
    await cluster.run()
    assert await completed(coordinator, task)
    assert state_of(coordinator, liar) is NodeState.EVICTED


async def test_a_plan_with_too_few_lanes_is_refused(coordinator: Coordinator) -> None:
    task, plan = audited(), even_plan(NODES)
    attempt = await coordinator.coordinate(task, plan)
    with pytest.raises(InvalidPlanInput):
        await coordinator.sessions.open(OpenSession(task_id=task.task_id, attempt=attempt, plan=plan))


async def test_a_plan_that_seats_a_node_twice_at_a_stage_is_refused(coordinator: Coordinator) -> None:
    task, plan = audited(), even_plan(NODES, num_lanes=4)
    attempt = await coordinator.coordinate(task, plan)
    with pytest.raises(InvalidPlanInput):
        await coordinator.sessions.open(OpenSession(task_id=task.task_id, attempt=attempt, plan=plan))


async def test_a_last_stage_that_shows_other_tokens_than_it_signs_is_convicted(coordinator: Coordinator) -> None:
    def show(seat: Assignment, record: TokenRecord) -> TokenRecord:
        return replace(record, token_id=record.token_id % 200 + 1) if seat.node_id == N3 else record

    task, cluster = audited(), Cluster(coordinator, conduct=Conduct(show=show))
    await coordinator.open(task)
    await cluster.run()
    assert await completed(coordinator, task)
    (failure,) = coordinator.events.of(NodeFailure)
    assert (failure.node_id, coordinator.evidence.kept[failure.evidence]["rule"]) == (N3, 4)


async def test_an_auditor_that_runs_other_ids_than_it_was_given_is_convicted(coordinator: Coordinator) -> None:
    def read(seat: Assignment, row: int, data: bytes) -> bytes:
        return bytes(4) if (seat.node_id, seat.lane, seat.stage) == (N3, 1, 0) else data

    task, cluster = audited(), Cluster(coordinator, conduct=Conduct(read=read))
    await coordinator.open(task)
    await cluster.run()
    assert await completed(coordinator, task)
    (failure,) = coordinator.events.of(NodeFailure)
    assert (failure.node_id, coordinator.evidence.kept[failure.evidence]["rule"]) == (N3, 3)


@pytest.mark.parametrize("epochs", [(1,), (1, 2)])
async def test_neighbours_that_disagree_once_are_seated_apart_and_nobody_is_convicted(
    coordinator: Coordinator, epochs: tuple[int, ...]
) -> None:
    """In the second epoch at a link that the coordinator does not carry."""

    def read(seat: Assignment, row: int, data: bytes) -> bytes:
        stage = 1 if seat.epoch == 1 else 2
        is_misread = (seat.node_id, seat.lane, seat.stage) == ((N2, N3)[stage - 1], 0, stage) and seat.epoch in epochs
        return b"misread" if is_misread else data

    task, cluster = audited(), Cluster(coordinator, conduct=Conduct(read=read))
    session = await coordinator.open(task)
    await cluster.run()
    assert await completed(coordinator, task)
    assert coordinator.events.of(NodeFailure) == []
    assert session.apart == {(N1, N2), (N2, N3)} if 2 in epochs else {(N1, N2)}
    assert all(
        (min(earlier.node_id, later.node_id), max(earlier.node_id, later.node_id)) not in session.apart
        for lane in session.lanes
        for earlier, later in itertools.pairwise(lane)
    )
