"""What sessions make of the self-tests of their nodes."""

from shared.contracts.coordinator import OpenSession
from shared.contracts.messages import LoadStage
from shared.domain.ids import NodeId
from shared.domain.numerics import Profile, StageFacts
from shared.domain.session import SessionPhase
from shared.domain.task import InferenceTask, Verification
from shared.domain.task_state import TaskState
from tests.fakes.identities import N1, N2, N3, N4
from tests.fakes.partitioner import even_plan
from tests.fakes.signing_workers import true_tokens
from tests.fakes.tasks import make_task
from tests.unit.coordinator.cluster import Cluster
from tests.unit.coordinator.harness import NODES, Coordinator

SMALL = StageFacts("fake", "ab", Profile.DECODE_EXACT, 3)
SMALLER = StageFacts("fake", "ab", Profile.DECODE_EXACT, 1)
NOTHING = StageFacts("fake", "ab", Profile.TOLERANT, 16)


def audited() -> InferenceTask:
    return make_task(verification=Verification.AUDIT, max_byzantine=1)


def order_texts(coordinator: Coordinator) -> list[str]:
    return [order.order.text for node in NODES for order in coordinator.workers[node].assignments()]


async def test_the_orders_of_all_lanes_name_the_profile_and_the_row_class(coordinator: Coordinator) -> None:
    for node in NODES:
        coordinator.workers[node].facts = SMALL
    await coordinator.open(audited())
    texts = order_texts(coordinator)
    assert len(texts) == 6
    assert all('"profile":"decode-exact"' in text and '"row_class":3' in text for text in texts)


async def test_without_verification_lane_0_keeps_to_the_smallest_class_of_its_stages(coordinator: Coordinator) -> None:
    coordinator.workers[N1].facts, coordinator.workers[N2].facts = SMALL, SMALLER
    await coordinator.open(make_task())
    assert all('"row_class":1' in text for text in order_texts(coordinator))


async def test_what_is_known_of_a_stage_is_not_asked_again(coordinator: Coordinator) -> None:
    await coordinator.open(make_task())
    await coordinator.open(make_task())
    assert [len(coordinator.workers[node].heard(LoadStage)) for node in NODES] == [1, 1, 1]


async def test_a_stage_that_promises_nothing_is_not_verified_and_the_answer_says_why(coordinator: Coordinator) -> None:
    for node in NODES:
        coordinator.workers[node].facts = NOTHING
    task = audited()
    plan = even_plan(NODES, num_lanes=2)
    attempt = await coordinator.coordinate(task, plan)
    await coordinator.sessions.open(OpenSession(task_id=task.task_id, attempt=attempt, plan=plan))
    await coordinator.settle()
    record = await coordinator.record(task)
    assert (record.state, record.error_code) == (TaskState.FAILED, "verification_unavailable")
    assert "'tolerant'" in record.error
    assert "'exact' and 'decode-exact'" in record.error


async def test_a_stage_that_promises_nothing_still_answers_unverified(coordinator: Coordinator) -> None:
    for node in NODES:
        coordinator.workers[node].facts = NOTHING
    await coordinator.open(make_task())
    assert all('"profile":"tolerant"' in text for text in order_texts(coordinator))


async def test_a_node_with_another_self_test_is_not_paired_and_not_accused(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    coordinator.workers[N2].facts = StageFacts("fake", "other bits", Profile.EXACT, None)
    task = audited()
    session = await coordinator.open(task)
    assert session.is_running
    assert {seat.node_id for lane in session.lanes for seat in lane} == {N1, N3, N4}
    assert session.epoch == 2  # in the first, they were found to differ
    odd = next(node for node in coordinator.members.nodes().nodes if node.node_id == N2)
    assert (odd.state, odd.capability.kin) == ("ready", f"kin of {N2}")
    assert "its self-test differs" in odd.reason
    member = coordinator.members.find(NodeId(N2))
    assert member is not None


async def test_after_a_restart_the_committed_tokens_are_continued_on_nodes_with_their_self_test_alone() -> None:
    first = await Coordinator().start((N1, N2, N3))
    task = make_task(verification=Verification.AUDIT, max_byzantine=1, max_tokens=20)
    await first.open(task)
    cluster = Cluster(first)
    cluster.is_stopped = lambda key: key[2] == 1 and len(first.session(task).records) > 6
    await cluster.run()
    assert 0 < len(await first.token_ids(task)) < 20
    await first.stop()

    again = Coordinator(clock=first.clock, registry=first.registry, workers=first.workers, receipts=first.receipts)
    await again.start(())
    for node in NODES:  # they come back with another build
        await again.join(node, boot_id="boot-2")
        again.workers[node].facts = StageFacts("fake", "other bits", Profile.EXACT, None)
    await again.advance(4)
    assert again.session(task).phase is SessionPhase.RECOVERING
    assert "what is committed was computed otherwise" in again.session(task).faults[-1].reason
    for node in NODES:  # and once more, with the build that they had
        await again.join(node, boot_id="boot-3")
    await again.advance(4)
    await Cluster(again).run()
    assert await again.state(task) is TaskState.COMPLETED
    assert await again.token_ids(task) == true_tokens(task.prompt_ids, 20)
    await again.stop()


async def test_one_liar_cannot_keep_the_others_from_verifying(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    coordinator.workers[N2].facts = NOTHING
    session = await coordinator.open(audited())
    assert session.is_running
    assert N2 not in session.nodes


async def test_only_the_first_word_of_a_stage_counts(coordinator: Coordinator) -> None:
    await coordinator.open(make_task())
    worker = coordinator.workers[N2]
    worker.facts = NOTHING
    await coordinator.has_loaded(N2)
    member = coordinator.members.find(NodeId(N2))
    assert member is not None
    assert [found.profile for found in member.facts.values()] == [Profile.EXACT]
