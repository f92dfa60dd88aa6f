"""Answers that are held back: shown when fresh nodes have come to the same, never when they have not."""

from services.api.domain.stream_entries import committed
from shared.domain.errors import DisputeUnresolved, VerificationUnavailable
from shared.domain.session import NodeState
from shared.domain.tail_state import TailState
from shared.domain.task import InferenceTask, Verification
from shared.domain.task_state import TaskState
from shared.events.catalogue import AnswerRevoked, TaskCompleted, TaskFailed
from tests.fakes.identities import N1, N2, N3, N4, N5, N6
from tests.fakes.signing_workers import true_tokens
from tests.unit.coordinator.cluster import Cluster
from tests.unit.coordinator.harness import NODES, Coordinator
from tests.unit.coordinator.service.test_tail_audits import audited, clustered, states, tail_state, wrong_at


def held(**changes: object) -> InferenceTask:
    return audited(hold=True, **changes)


async def shown(coordinator: Coordinator, task: InferenceTask) -> int:
    """Tokens in what its client reads."""
    entries = (await coordinator.registry.read_streams({task.task_id: "0"}, block_s=0)).get(task.task_id, ())
    return sum(len(committed(entry)) for entry in entries)


async def test_an_honest_answer_is_shown_once_its_audit_has_passed_and_not_before() -> None:
    async with clustered(fraction=0.0) as (coordinator, cluster):
        task = held()
        await coordinator.open(task)
        cluster.is_stopped = lambda key: key[1] > 1
        await cluster.run()
        assert await coordinator.state(task) is TaskState.AGGREGATING
        assert (await shown(coordinator, task), coordinator.events.of(TaskCompleted)) == (0, [])
        cluster.is_stopped = lambda _: False
        await cluster.run()
        assert await coordinator.state(task) is TaskState.COMPLETED
        assert await tail_state(coordinator, task) is TailState.PASSED
        assert await shown(coordinator, task) == 20
        assert await coordinator.token_ids(task) == true_tokens(task.prompt_ids, 20)
        (told,) = coordinator.events.of(TaskCompleted)
        assert set(told.nodes_involved) == set(NODES)
        assert not coordinator.has_session(task)


async def test_an_answer_that_fresh_nodes_contradict_fails_and_nothing_of_it_is_shown() -> None:
    colluders = wrong_at(lambda seat: seat.stage == 1 and seat.node_id in {N1, N2}, from_row=5)
    async with clustered(colluders, fraction=0.0) as (coordinator, cluster):
        task = held()
        await coordinator.open(task)
        await cluster.run()
        record = await coordinator.record(task)
        assert (record.state, record.error_code) == (TaskState.FAILED, DisputeUnresolved.code)
        assert "another result at stage 1, window 2" in record.error
        assert await shown(coordinator, task) == 0
        assert coordinator.events.of(AnswerRevoked) == []  # nobody has read it
        (told,) = coordinator.events.of(TaskFailed)
        assert told.error == DisputeUnresolved.code
        assert states(coordinator) == dict.fromkeys(NODES, NodeState.QUARANTINED)


async def test_it_waits_for_fresh_nodes_until_they_come() -> None:
    async with clustered(fraction=0.0) as (coordinator, cluster):
        task = held(verification=Verification.QUORUM)  # every node sits at every stage
        await coordinator.open(task)
        await cluster.run()
        await coordinator.advance(5)
        assert await coordinator.state(task) is TaskState.AGGREGATING
        for node_id in (N4, N5, N6):
            await coordinator.join(node_id, slots=2)
        await coordinator.advance(2)
        await cluster.run()
        assert await coordinator.state(task) is TaskState.COMPLETED
        assert await shown(coordinator, task) == 20


async def test_where_none_come_it_fails_before_its_deadline_and_says_what_is_missing() -> None:
    async with clustered(fraction=0.0) as (coordinator, cluster):
        task = held(verification=Verification.QUORUM, deadline_s=20.0)
        await coordinator.open(task)
        await cluster.run()
        await coordinator.advance(20)
        record = await coordinator.record(task)
        assert (record.state, record.error_code) == (TaskState.FAILED, VerificationUnavailable.code)
        assert "no fresh nodes for every stage" in record.error
        assert await shown(coordinator, task) == 0


async def test_one_that_is_cancelled_while_it_waits_is_let_go() -> None:
    async with clustered(fraction=0.0) as (coordinator, cluster):
        task = held(verification=Verification.QUORUM)
        await coordinator.open(task)
        await cluster.run()
        await coordinator.registry.cancel(task.task_id)
        coordinator.sessions.cancel(task.task_id)
        await coordinator.advance(3)
        assert not coordinator.holds(task)
        assert coordinator.events.of(TaskFailed) == []


async def test_its_audit_gives_way_to_no_session() -> None:
    async with clustered(fraction=0.0, slots=1) as (coordinator, cluster):
        task = held()
        await coordinator.open(task)
        cluster.is_stopped = lambda key: key[1] > 1
        await cluster.run()
        assert max(view.slots_used for view in coordinator.members.nodes().nodes) == 1


async def test_a_coordinator_that_starts_anew_audits_what_is_held() -> None:
    async with clustered(fraction=0.0) as (first, cluster):
        task = held()
        await first.open(task)
        cluster.is_stopped = lambda key: key[1] > 1
        await cluster.run()
        await first.stop()
        assert await first.state(task) is TaskState.AGGREGATING

        second = Coordinator(
            clock=first.clock,
            registry=first.registry,
            workers=first.workers,
            standings=first.standings,
            receipts=first.receipts,
        )
        await second.start(())
        for node_id in (N1, N2, N3):
            await second.join(node_id, slots=2)
        again = Cluster(second)
        await second.advance(4)
        await again.run()
        assert await second.state(task) is TaskState.COMPLETED
        assert await shown(second, task) == 20
        await second.stop()
