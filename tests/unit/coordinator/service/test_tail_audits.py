"""The fresh audit of finished answers: f + 1 colluders are found, honest answers pass, sessions are never delayed."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from shared.contracts.messages import (
    Draft,
    DraftTokens,
    SealWindow,
    SessionStop,
    WindowRelease,
    WorkAssignment,
)
from shared.domain.bundle import Bundle, TrustedKeys, check_bundle, committed_entries
from shared.domain.errors import Forbidden, RegistryUnavailable
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.numerics import Profile
from shared.domain.receipt import Assignment, read_assignment
from shared.domain.session import NodeState
from shared.domain.tail_state import TailState
from shared.domain.task import InferenceTask, Verification
from shared.domain.task_state import TaskState
from shared.domain.window_check import OUTVOTED
from shared.events.catalogue import AnswerRevoked, NodeFailure, TailAuditChanged
from tests.fakes.clock import FakeClock
from tests.fakes.identities import COORDINATOR_KEY, N1, N2, N3, N4, N5, N6
from tests.fakes.signing_workers import Conduct, true_tokens
from tests.fakes.task_registry import MemoryTaskRegistry
from tests.fakes.tasks import make_task, make_tokens
from tests.unit.coordinator.cluster import HONEST, Cluster
from tests.unit.coordinator.harness import NODES, Coordinator

TRUSTED = TrustedKeys(COORDINATOR_KEY.public_key)


class LosableRegistry(MemoryTaskRegistry):
    """What becomes of tail audits cannot be written while `is_away`."""

    is_away = False

    async def note_tail_audit(
        self, task_id: TaskId, *, epoch: Epoch, state: TailState, error_code: str = "", error: str = ""
    ) -> None:
        if self.is_away:
            raise RegistryUnavailable("away")
        await super().note_tail_audit(task_id, epoch=epoch, state=state, error_code=error_code, error=error)


def audited(**changes: object) -> InferenceTask:
    values: dict[str, object] = {"verification": Verification.AUDIT, "max_byzantine": 1, "max_tokens": 20}
    return make_task(**(values | changes))


def wrong_at(is_lying: Callable[[Assignment], bool], *, from_row: int = 0) -> Conduct:
    def distort(seat: Assignment, row: int, data: bytes) -> bytes:
        return bytes([data[0] ^ 1]) + data[1:] if is_lying(seat) and row >= from_row else data

    return Conduct(make=distort)


@asynccontextmanager
async def clustered(
    conduct: Conduct = HONEST,
    *,
    fraction: float = 1.0,
    nodes: tuple[NodeId, ...] = NODES,
    slots: int = 2,
    trusted: frozenset[NodeId] = frozenset(),
) -> AsyncIterator[tuple[Coordinator, Cluster]]:
    clock = FakeClock()
    registry = LosableRegistry(now=clock.wall_s)
    coordinator = await Coordinator(
        clock=clock, registry=registry, tail_audit_fraction=fraction, trusted=trusted
    ).start(())
    for node_id in nodes:
        await coordinator.join(node_id, slots=slots)
    yield coordinator, Cluster(coordinator, conduct=conduct)
    await coordinator.stop()


async def tail_state(coordinator: Coordinator, task: InferenceTask) -> TailState:
    return (await coordinator.record(task)).tail_audit


async def bundle_of(coordinator: Coordinator, task: InferenceTask) -> Bundle:
    tokens = await coordinator.token_ids(task)
    record = await coordinator.record(task)
    return Bundle(
        task_id=task.task_id,
        choice=0,
        model_id=task.model_id,
        profile=Profile.EXACT,
        mode=task.verification,
        f=task.max_byzantine,
        complete=True,
        finish_reason=record.finish_reason,
        sampler=task.sampler,
        prompt_ids=task.prompt_ids,
        answer_ids=tuple(tokens),
        entries=committed_entries(
            await coordinator.receipts.entries(task.task_id), num_tokens=len(tokens), has_completed=True
        ),
        tail_state=record.tail_audit,
        tail=await coordinator.receipts.tail_audit(task.task_id),
    )


def states(coordinator: Coordinator) -> dict[str, NodeState]:
    return {view.node_id: view.state for view in coordinator.members.nodes().nodes}


def told_states(coordinator: Coordinator) -> list[TailState]:
    return [event.state for event in coordinator.events.of(TailAuditChanged)]


async def test_an_honest_answer_passes_on_three_nodes_and_the_proof_of_it_holds_offline() -> None:
    async with clustered() as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        await cluster.run()
        assert await tail_state(coordinator, task) is TailState.PASSED
        assert await coordinator.token_ids(task) == true_tokens(task.prompt_ids, 20)
        guarantee = check_bundle(await bundle_of(coordinator, task), trusted=TRUSTED)
        assert guarantee.tail_nodes == (N2, N3, N1)  # the rotation that neither lane 0 nor lane 1 has
        assert guarantee.sentence.endswith("tail audit: passed, computed alike once more by 3 fresh nodes")
        assert told_states(coordinator) == [TailState.PENDING, TailState.PASSED]
        assert set(states(coordinator).values()) == {NodeState.READY}
        assert cluster.refusals == []
        assert not coordinator.has_session(task)


async def test_colluders_in_both_lanes_of_a_stage_are_found_and_the_answer_is_revoked() -> None:
    # N2 holds stage 1 in lane 0, N1 in lane 1; the third node audits.
    colluders = wrong_at(lambda seat: seat.stage == 1 and seat.node_id in {N1, N2}, from_row=5)
    async with clustered(colluders) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        await cluster.run()
        assert await coordinator.state(task) is TaskState.COMPLETED
        assert await coordinator.token_ids(task) != true_tokens(task.prompt_ids, 20)
        assert await tail_state(coordinator, task) is TailState.FAILED
        assert (await coordinator.record(task)).is_revoked
        (revoked,) = coordinator.events.of(AnswerRevoked)
        assert (revoked.task_id, revoked.stage, revoked.window) == (task.task_id, 1, 2)
        assert states(coordinator) == dict.fromkeys(
            NODES, NodeState.QUARANTINED
        )  # two against one: nobody is convicted
        assert coordinator.events.of(NodeFailure) == []
        sentence = check_bundle(await bundle_of(coordinator, task)).sentence
        assert sentence.startswith("revoked: ")
        assert sentence.endswith("tail audit: failed, fresh nodes came to another result")


SIX = (N1, N2, N3, N4, N5, N6)


def quarantined(coordinator: Coordinator) -> set[str]:
    return {node for node, state in states(coordinator).items() if state is NodeState.QUARANTINED}


async def test_two_auditors_that_say_the_same_against_the_answer_are_not_quarantined() -> None:
    colluders = wrong_at(lambda seat: seat.stage == 2 and seat.epoch == 1)
    async with clustered(colluders, nodes=SIX) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        await cluster.run()
        assert await tail_state(coordinator, task) is TailState.FAILED
        assert len(coordinator.events.of(AnswerRevoked)) == 1
        assert (await coordinator.record(task)).epoch == 3
        assert quarantined(coordinator) == {N2, N3}  # who signed stage 2
        assert coordinator.events.of(NodeFailure) == []


@pytest.mark.parametrize("stage", [0, 1, 2])
async def test_one_dishonest_auditor_can_have_no_right_answer_revoked(stage: int) -> None:
    liar: set[str] = set()

    def is_lying(seat: Assignment) -> bool:
        if seat.epoch == 2 and seat.stage == stage:
            liar.add(seat.node_id)
        return seat.epoch > 1 and seat.node_id in liar  # at whatever stage it sits

    async with clustered(wrong_at(is_lying, from_row=5), nodes=SIX) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        await cluster.run()
        assert await tail_state(coordinator, task) is TailState.PASSED
        assert coordinator.events.of(AnswerRevoked) == []
        assert quarantined(coordinator) == liar
        assert coordinator.events.of(TailAuditChanged)[-1].reason != ""
        assert check_bundle(await bundle_of(coordinator, task), trusted=TRUSTED).tail_nodes


async def test_where_three_results_stand_against_each_other_all_who_signed_them_are_quarantined() -> None:
    def distort(seat: Assignment, row: int, data: bytes) -> bytes:
        return bytes([data[0] ^ seat.epoch]) + data[1:] if seat.epoch > 1 and seat.stage == 2 else data

    async with clustered(Conduct(make=distort), nodes=SIX) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        await cluster.run()
        assert await tail_state(coordinator, task) is TailState.FAILED
        assert {N2, N3} < quarantined(coordinator)
        assert len(quarantined(coordinator)) == 4


async def test_a_second_audit_that_comes_to_no_end_leaves_the_first_ones_word() -> None:
    liars = wrong_at(lambda seat: seat.stage == 2 and seat.epoch == 2)
    async with clustered(liars, nodes=SIX) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        cluster.is_stopped = lambda key: key[1] > 2
        await cluster.run()
        assert coordinator.events.of(AnswerRevoked) == []  # nothing is said before it
        for _ in range(4):
            await coordinator.advance(6)
            await cluster.run()
        assert await tail_state(coordinator, task) is TailState.FAILED
        assert {N2, N3} < quarantined(coordinator)
        assert len(quarantined(coordinator)) == 3


def evicted(coordinator: Coordinator) -> set[str]:
    return {node for node, state in states(coordinator).items() if state is NodeState.EVICTED}


async def test_a_trusted_auditor_is_believed_and_convicts_all_who_signed_something_else() -> None:
    colluders = wrong_at(lambda seat: seat.stage == 1 and seat.node_id in {N1, N2}, from_row=5)
    async with clustered(colluders, trusted=frozenset({N3})) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        await cluster.run()
        assert (await coordinator.record(task)).is_revoked
        assert evicted(coordinator) == {N1, N2}
        assert quarantined(coordinator) == set()
        for body in coordinator.evidence.kept.values():  # whoever reads it can check every signature in it
            keys, receipts = body["keys"], body["receipts"]
            assert isinstance(keys, dict)
            assert isinstance(receipts, list)
            assert body["rule"] == OUTVOTED
            assert {NodeId(json.loads(each["text"].partition("\n")[2])["node_id"]) for each in receipts} <= set(keys)
            assert body["orders"]


async def test_an_auditor_that_differs_from_a_trusted_signer_is_convicted_and_the_answer_stands() -> None:
    liars = wrong_at(lambda seat: seat.stage == 1 and seat.epoch == 2)
    async with clustered(liars, nodes=SIX, trusted=frozenset({N2})) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        assert coordinator.session(task).lanes[0][1].node_id == N2
        await cluster.run()
        assert await tail_state(coordinator, task) is TailState.PASSED
        assert len(evicted(coordinator)) == 1
        assert (quarantined(coordinator), coordinator.events.of(AnswerRevoked)) == (set(), [])


@pytest.mark.parametrize("is_answer_right", [True, False])
async def test_a_trusted_node_is_asked_when_an_audit_has_doubts_and_convicts_whom_it_differs_from(
    is_answer_right: bool,
) -> None:
    lying_epoch = 2 if is_answer_right else 1
    liars = wrong_at(lambda seat: seat.stage == 2 and seat.epoch == lying_epoch)
    trusted = frozenset({N1})
    async with clustered(liars, nodes=SIX, trusted=trusted) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        lanes = coordinator.session(task).lanes
        signers = {lane[2].node_id for lane in lanes}
        assert not signers & trusted
        await cluster.run()
        (first,) = {order.node_id for order in last_stages(coordinator, epoch=2)}
        judges = {order.node_id for order in last_stages(coordinator, epoch=3)}
        assert first not in trusted
        assert judges == trusted
        assert quarantined(coordinator) == set()
        if is_answer_right:
            assert evicted(coordinator) == {first}
            assert await tail_state(coordinator, task) is TailState.PASSED
        else:
            assert evicted(coordinator) == signers
            assert (await coordinator.record(task)).is_revoked


async def test_an_auditor_looks_like_any_audit_lane() -> None:
    async with clustered() as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        await cluster.run()
        heard = [message for node in NODES for message in coordinator.workers[node].told]
        orders = [each for each in heard if isinstance(each, WorkAssignment)]
        usual = {each.stage: each for each in orders if (each.epoch, each.lane) == (1, 1)}
        tail = {each.stage: each for each in orders if each.epoch == 2}
        assert tail.keys() == usual.keys()
        own = {"epoch", "plan_id", "previous", "next", "order"}
        for stage, order in tail.items():
            assert order.model_dump(exclude=own) == usual[stage].model_dump(exclude=own)
        for kind in (WindowRelease, SealWindow):
            told = [each for each in heard if isinstance(each, kind) and each.lane == 1]
            by_epoch = [
                sorted(each.model_dump_json(exclude={"epoch"}) for each in told if each.epoch == epoch)
                for epoch in (1, 2)
            ]
            assert by_epoch[0] == by_epoch[1] != []
        assert {each.epoch for each in heard if isinstance(each, SessionStop)} == {1, 2}


async def test_the_auditor_that_signs_what_it_did_not_compute_is_convicted_and_the_answer_stands() -> None:
    def show_other(seat: Assignment, row: int, data: bytes) -> bytes:
        return b"other!!!" if seat.epoch == 2 and seat.stage == 0 else data

    async with clustered(Conduct(read=show_other), nodes=(N1, N2, N3, N4, N5, N6)) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        await cluster.run()
        (failure,) = coordinator.events.of(NodeFailure)
        assert failure.reason == "evidence"
        assert await tail_state(coordinator, task) is TailState.PASSED  # at the second try
        assert told_states(coordinator) == [TailState.PENDING, TailState.PASSED]


async def test_where_no_fresh_nodes_are_it_is_skipped_and_counted() -> None:
    async with clustered() as (coordinator, cluster):
        task = audited(verification=Verification.QUORUM)  # three lanes: every node sits at every stage
        await coordinator.open(task)
        await cluster.run()
        assert await tail_state(coordinator, task) is TailState.SKIPPED
        assert told_states(coordinator) == [TailState.PENDING, TailState.SKIPPED]
        assert check_bundle(await bundle_of(coordinator, task)).sentence.endswith("tail audit: skipped")


async def test_an_answer_that_is_not_drawn_is_not_audited() -> None:
    async with clustered(fraction=0.0) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        await cluster.run()
        assert await tail_state(coordinator, task) is TailState.NONE
        assert told_states(coordinator) == []


async def test_unverified_answers_are_never_audited() -> None:
    async with clustered() as (coordinator, cluster):
        task = audited(verification=Verification.NONE, max_byzantine=0)
        await coordinator.open(task)
        await cluster.run()
        assert await coordinator.state(task) is TaskState.COMPLETED
        assert await tail_state(coordinator, task) is TailState.NONE


async def test_a_session_that_needs_its_slots_drops_an_audit() -> None:
    async with clustered(slots=1) as (coordinator, cluster):
        first, second = audited(), audited()
        await coordinator.open(first)
        epoch_2_stands = {"still": True}
        cluster.is_stopped = lambda key: key[0] == first.task_id and key[1] > 1 and epoch_2_stands["still"]
        await cluster.run()
        assert await coordinator.state(first) is TaskState.COMPLETED
        assert coordinator.has_session(first)  # its audit, which stands still
        await coordinator.open(second)
        epoch_2_stands["still"] = False
        await cluster.run()
        assert await coordinator.state(second) is TaskState.COMPLETED


async def test_nobody_can_end_an_audit_by_drafts_that_nobody_asked_for() -> None:
    async with clustered(nodes=(N1, N2, N3, N4)) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        cluster.is_stopped = lambda key: key[1] > 1
        await cluster.run()
        for sender in (N1, N2, N3, N4):
            draft = Draft(task_id=task.task_id, epoch=Epoch(2), first_position=3, records=make_tokens(7))
            with pytest.raises(Forbidden):
                await coordinator.messages.handle(coordinator.tokens[sender], DraftTokens(drafts=(draft,)))
        cluster.is_stopped = lambda _: False
        await cluster.run()
        assert await tail_state(coordinator, task) is TailState.PASSED
        assert (await coordinator.record(task)).epoch == 2


async def test_a_silent_auditor_is_left_out_of_the_next_try() -> None:
    async with clustered(nodes=(N1, N2, N3, N4, N5, N6)) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        cluster.is_stopped = lambda key: key[1] > 1
        await cluster.run()
        (silent,) = {order.next.node_id for order in first_stages(coordinator, epoch=2) if order.next is not None}
        cluster.mute.add(silent)
        cluster.is_stopped = lambda _: False
        await cluster.run()
        await coordinator.advance(6)
        await cluster.run()
        assert await tail_state(coordinator, task) is TailState.PASSED
        assert silent not in check_bundle(await bundle_of(coordinator, task)).tail_nodes


def first_stages(coordinator: Coordinator, *, epoch: int) -> list[WorkAssignment]:
    orders = [order for worker in coordinator.workers.runs for order in worker.assignments()]
    return [order for order in orders if (order.stage, order.epoch) == (0, epoch)]


def last_stages(coordinator: Coordinator, *, epoch: int) -> list[Assignment]:
    orders = [order for worker in coordinator.workers.runs for order in worker.assignments()]
    found = [read_assignment(order.order.signed(), COORDINATOR_KEY.public_key) for order in orders]
    return [order for order in found if (order.stage, order.epoch) == (2, epoch)]


async def test_while_the_registry_is_away_the_finding_waits() -> None:
    colluders = wrong_at(lambda seat: seat.stage == 1 and seat.node_id in {N1, N2}, from_row=5)
    async with clustered(colluders) as (coordinator, cluster):
        registry = coordinator.registry
        assert isinstance(registry, LosableRegistry)
        task = audited()
        await coordinator.open(task)
        cluster.is_stopped = lambda key: key[1] > 1
        await cluster.run()
        registry.is_away = True
        cluster.is_stopped = lambda _: False
        await cluster.run()
        assert coordinator.events.of(AnswerRevoked)
        assert (await registry.record(task.task_id)).tail_audit is TailState.PENDING
        registry.is_away = False
        await coordinator.advance(3)
        assert await tail_state(coordinator, task) is TailState.FAILED


async def test_an_audit_that_stands_still_is_given_up() -> None:
    async with clustered() as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        cluster.is_stopped = lambda key: key[1] > 1
        await cluster.run()
        assert await tail_state(coordinator, task) is TailState.PENDING
        await coordinator.advance(400)
        assert await tail_state(coordinator, task) is TailState.SKIPPED
        assert not coordinator.has_session(task)
        assert set(states(coordinator).values()) == {NodeState.READY}


@pytest.mark.parametrize("liar", [N1, N2, N3])
async def test_answers_of_a_node_that_is_evicted_later_are_audited(liar: NodeId) -> None:
    liars: set[str] = set()
    conduct = wrong_at(lambda seat: seat.node_id in liars)
    async with clustered(conduct, fraction=0.0, nodes=(N1, N2, N3, N4, N5, N6)) as (coordinator, cluster):
        before, after = audited(), audited()
        await coordinator.open(before)
        await cluster.run()
        assert await tail_state(coordinator, before) is TailState.NONE
        liars.add(liar)
        await coordinator.open(after)
        await cluster.run()
        assert states(coordinator)[liar] is NodeState.EVICTED
        assert await tail_state(coordinator, before) is TailState.PASSED
        assert await coordinator.token_ids(after) == true_tokens(after.prompt_ids, 20)


async def test_an_answer_that_took_several_epochs_is_audited_as_a_whole() -> None:
    conduct = wrong_at(lambda seat: seat.node_id == N2 and seat.epoch == 1, from_row=9)
    async with clustered(conduct, nodes=(N1, N2, N3, N4, N5, N6)) as (coordinator, cluster):
        task = audited()
        await coordinator.open(task)
        await cluster.run()
        assert (await coordinator.record(task)).epoch > 2
        assert await tail_state(coordinator, task) is TailState.PASSED
        assert check_bundle(await bundle_of(coordinator, task), trusted=TRUSTED).tail_nodes


async def test_of_many_honest_answers_none_is_revoked_and_nobody_is_blamed() -> None:
    async with clustered(fraction=0.5, nodes=(N1, N2, N3, N4, N5)) as (coordinator, cluster):
        tasks = [audited(prompt_ids=(1, 2, seed)) for seed in range(1, 41)]
        for task in tasks:
            await coordinator.open(task)
            await cluster.run()
        told = told_states(coordinator)
        drawn = told.count(TailState.PENDING)
        assert 10 < drawn < 30
        assert told.count(TailState.PASSED) == drawn
        assert coordinator.events.of(AnswerRevoked) == []
        assert coordinator.events.of(NodeFailure) == []
        assert set(states(coordinator).values()) == {NodeState.READY}
