"""The second try of a link fault: what passes goes through the coordinator, and who lies about it is guilty."""

import hashlib

import pytest

from shared.contracts.messages import LinkFault, WorkAssignment
from shared.domain import canonical
from shared.domain.ids import NodeId
from shared.domain.passage import PASSAGE
from shared.domain.receipt import Assignment
from shared.domain.session import NodeState
from shared.domain.signing import Signed, is_signed_by
from shared.domain.task import InferenceTask, Verification
from shared.domain.task_state import TaskState
from shared.events.catalogue import NodeFailure
from tests.fakes.identities import COORDINATOR_KEY, COORDINATOR_URL, N1, N2, N3, N4
from tests.fakes.signing_workers import Conduct, true_tokens
from tests.fakes.tasks import make_task
from tests.unit.coordinator.cluster import Cluster
from tests.unit.coordinator.harness import NODES, Coordinator


def audited() -> InferenceTask:
    return make_task(verification=Verification.AUDIT, max_byzantine=1, max_tokens=20)


def other(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def equivocates(node_id: NodeId, *, from_row: int = 3, epochs: tuple[int, ...] = (1, 2)) -> Conduct:
    """Signs what it made and sends something else, at stage 0 of lane 0."""

    def send(seat: Assignment, row: int, data: bytes) -> bytes:
        is_lying = (seat.node_id, seat.lane, seat.stage) == (node_id, 0, 0) and seat.epoch in epochs
        return other(data) if is_lying and row >= from_row else data

    return Conduct(send=send)


def misreads(node_id: NodeId, *, from_row: int = 3) -> Conduct:
    """Claims that it got something else, at stage 1 of lane 0."""

    def read(seat: Assignment, row: int, data: bytes) -> bytes:
        is_lying = (seat.node_id, seat.lane, seat.stage) == (node_id, 0, 1)
        return other(data) if is_lying and row >= from_row else data

    return Conduct(read=read)


async def check_answer(coordinator: Coordinator, task: InferenceTask) -> None:
    assert await coordinator.state(task) is TaskState.COMPLETED
    assert await coordinator.token_ids(task) == true_tokens(task.prompt_ids, task.max_tokens)


def state_of(coordinator: Coordinator, node_id: str) -> NodeState:
    return next(view.state for view in coordinator.members.nodes().nodes if view.node_id == node_id)


def second_orders(coordinator: Coordinator) -> list[WorkAssignment]:
    return [order for node in NODES for order in coordinator.workers[node].assignments() if order.epoch == 2]


@pytest.mark.parametrize(("conduct", "guilty"), [(equivocates(N1), N1), (misreads(N2), N2)])
async def test_who_lies_about_a_link_again_is_convicted_with_a_statement_of_what_passed(
    coordinator: Coordinator, conduct: Conduct, guilty: NodeId
) -> None:
    task, cluster = audited(), Cluster(coordinator, conduct=conduct)
    await coordinator.open(task)
    await cluster.run()
    await check_answer(coordinator, task)
    (failure,) = coordinator.events.of(NodeFailure)
    evidence = coordinator.evidence.kept[failure.evidence]
    assert (failure.node_id, evidence["rule"]) == (guilty, 5)
    passage: dict[str, str] = evidence["passages"][0]  # type: ignore[index]
    signed = Signed(passage["text"].encode(), bytes.fromhex(passage["signature"]))
    assert is_signed_by(COORDINATOR_KEY.public_key, signed)
    said = canonical.decode(PASSAGE, signed.text)
    assert (said["sender"], said["receiver"], said["lane"], said["stage"], said["epoch"]) == (N1, N2, 0, 1, 2)
    receipt: dict[str, str] = evidence["receipts"][0]  # type: ignore[index]
    accused = canonical.decode("receipt", receipt["text"].encode())
    digest = accused["out_digest"] if guilty == N1 else accused["in_digest"]
    assert digest != said["end_digest"]


async def test_only_the_link_at_fault_goes_through_the_coordinator(coordinator: Coordinator) -> None:
    task, cluster = audited(), Cluster(coordinator, conduct=equivocates(N1))
    await coordinator.open(task)
    await cluster.run()
    orders = second_orders(coordinator)
    around = [order for order in orders if order.next and order.next.address == COORDINATOR_URL]
    beyond = [order for order in orders if order.previous and order.previous.address == COORDINATOR_URL]
    assert [(order.lane, order.stage) for order in around] == [(0, 0)]
    assert [(order.lane, order.stage) for order in beyond] == [(0, 1)]
    assert around[0].next is not None
    assert beyond[0].previous is not None
    assert around[0].next.node_id == beyond[0].previous.node_id
    assert around[0].next.link_token != beyond[0].previous.link_token
    assert coordinator.links.opened == [(N2, f"http://{N2}:8090", beyond[0].previous.link_token)]
    assert coordinator.links.ended == 1


async def test_what_passes_reaches_the_receiver_unchanged(coordinator: Coordinator) -> None:
    passed: list[str] = []

    def send(seat: Assignment, row: int, data: bytes) -> bytes:
        if (seat.lane, seat.stage, seat.epoch) == (0, 0, 1) and row == 3:
            return other(data)
        if (seat.lane, seat.stage, seat.epoch) == (0, 0, 2):
            passed.append(hashlib.sha256(data).hexdigest())
        return data

    task, cluster = audited(), Cluster(coordinator, conduct=Conduct(send=send))
    await coordinator.open(task)
    await cluster.run()
    came = [frame.hidden.data for frame in coordinator.links.frames if frame.hidden is not None]
    assert passed
    assert [hashlib.sha256(data).hexdigest() for data in came] == passed


async def test_who_sends_nothing_to_the_coordinator_is_not_convicted(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task, cluster = audited(), Cluster(coordinator, conduct=equivocates(N1))
    session = await coordinator.open(task)
    cluster.withholding.add(N1)
    await cluster.run()
    await coordinator.advance(7)
    await cluster.run()
    await check_answer(coordinator, task)
    assert coordinator.events.of(NodeFailure) == []
    assert session.apart == {(N1, N2)}
    stall = next(fault for fault in session.faults if fault.kind == "stall")
    assert stall.suspect == N1


async def test_a_receiver_that_signs_for_rows_that_never_passed_is_convicted(coordinator: Coordinator) -> None:
    task, cluster = audited(), Cluster(coordinator, conduct=equivocates(N1))
    await coordinator.open(task)
    cluster.withholding.add(N1)
    cluster.is_guessing = True
    await cluster.run()
    await check_answer(coordinator, task)
    assert [failure.node_id for failure in coordinator.events.of(NodeFailure)] == [N2]


async def test_a_witnessed_link_that_breaks_accuses_nobody(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task, cluster = audited(), Cluster(coordinator, conduct=equivocates(N1))
    session = await coordinator.open(task)
    coordinator.partitioner.is_away = True
    await cluster.run()
    cluster.stopped |= {0, 1, 2}
    coordinator.partitioner.is_away = False
    await coordinator.advance(2)
    assert session.epoch == 2
    peers = [order.next for order in second_orders(coordinator) if order.next]
    relay = next(peer for peer in peers if peer.address == COORDINATOR_URL)
    broken = LinkFault(peer=relay.node_id, outgoing=True, reason="broken")
    await coordinator.messages.handle(coordinator.tokens[N3], broken)
    assert session.faults[-1].kind == "dispute"  # it is no link of that node
    await coordinator.messages.handle(coordinator.tokens[N1], broken)
    assert (session.faults[-1].kind, session.faults[-1].suspect) == ("link", N2)
    cluster.stopped.clear()
    await cluster.run()
    await coordinator.advance(2)
    await cluster.run()
    await check_answer(coordinator, task)
    assert coordinator.events.of(NodeFailure) == []


async def test_who_reports_broken_links_again_and_again_is_left_out(coordinator: Coordinator) -> None:
    await coordinator.join(N4)
    task, cluster = audited(), Cluster(coordinator)
    session = await coordinator.open(task)
    for epoch in (1, 2):
        assert session.epoch == epoch
        lane = next(lane for lane in session.lanes if N2 in [seat.node_id for seat in lane])
        nodes = [seat.node_id for seat in lane]
        neighbour = nodes[(nodes.index(N2) + 1) % len(nodes)]
        broken = LinkFault(peer=neighbour, outgoing=True, reason="it is broken, believe me")
        await coordinator.messages.handle(coordinator.tokens[N2], broken)
        await coordinator.settle()
    assert N2 not in session.nodes
    await cluster.run()
    await check_answer(coordinator, task)
    assert coordinator.events.of(NodeFailure) == []
    assert state_of(coordinator, N2) is NodeState.READY
