"""After a loss a verified session goes on with the nodes that have its rows, and with no others as if they had them."""

from collections.abc import Mapping

import pytest

from services.coordinator.domain.faults import FaultKind
from services.coordinator.domain.session import Session
from shared.contracts.messages import WorkAssignment
from shared.domain.errors import RowsNotKept
from shared.domain.ids import NodeId
from shared.domain.plan import LayerRange
from shared.domain.receipt import Assignment
from shared.domain.task import InferenceTask, Verification
from shared.events.catalogue import SessionReassigned
from tests.fakes.identities import N1, N2, N3, N4, N5, N6
from tests.fakes.signing_workers import Conduct
from tests.unit.coordinator.cluster import Cluster
from tests.unit.coordinator.harness import Coordinator
from tests.unit.coordinator.service.test_verified_sessions import audited, completed

SIX = (N1, N2, N3, N4, N5, N6)


class Halting(Cluster):
    """Comes to a halt in its first epoch, when some windows are committed."""

    def __init__(self, coordinator: Coordinator, *, lies_in_epoch: int = 0) -> None:
        super().__init__(coordinator)
        self.halted: set[int] = set()
        """Epochs."""
        self.is_stopped = lambda key: key[1] in self.halted
        self.lies_in_epoch = lies_in_epoch
        self.conduct = Conduct(make=self._made)

    def _made(self, seat: Assignment, row: int, data: bytes) -> bytes:
        if seat.lane == 1 and row >= 6 and seat.epoch == 1:
            self.halted.add(1)
        if seat.epoch == self.lies_in_epoch and seat.lane == 1 and seat.stage == 0:
            return bytes([data[0] ^ 1]) + data[1:]
        return data


async def halted(coordinator: Coordinator, cluster: Halting, task: InferenceTask) -> Session:
    """A session on six nodes, lane 0 on the first three, with something committed and more under way."""
    for node_id in SIX[3:]:
        await coordinator.join(node_id)
    session = await coordinator.open(task, SIX[:3])
    await cluster.run()
    assert session.num_committed > 0
    assert cluster.halted == {1}
    return session


def orders(coordinator: Coordinator, epoch: int) -> dict[tuple[int, int], WorkAssignment]:
    """The latest of an epoch, by lane and stage."""
    return {
        (order.lane, order.stage): order
        for worker in coordinator.workers.runs
        for order in worker.assignments()
        if order.epoch == epoch
    }


def seats(session: Session, *keys: tuple[int, int]) -> set[tuple[NodeId, int]]:
    """Node and stage of these seats, by lane and stage."""
    return {(session.lanes[lane][stage].node_id, stage) for lane, stage in keys}


def warm(orders: Mapping[tuple[int, int], WorkAssignment]) -> list[tuple[int, int]]:
    return [key for key, order in orders.items() if order.start_row > 0]


def cold(orders: Mapping[tuple[int, int], WorkAssignment]) -> list[tuple[int, int]]:
    return [key for key, order in orders.items() if order.start_row == 0]


async def go_on_without(coordinator: Coordinator, *node_ids: str) -> None:
    for node_id in node_ids:
        await coordinator.lose(node_id)
    await coordinator.advance(3)


async def test_seats_that_signed_the_last_commit_go_on_from_there(coordinator: Coordinator) -> None:
    task, cluster = audited(), Halting(coordinator)
    session = await halted(coordinator, cluster, task)
    before = seats(session, *orders(coordinator, 1))
    first_row = len(task.prompt_ids) + session.num_committed - 1
    await go_on_without(coordinator, N1)
    again = orders(coordinator, 2)
    assert seats(session, *warm(again)) <= before
    assert {order.start_row for order in again.values()} == {0, first_row}
    for lane in range(2):
        starts = [again[lane, stage].start_row for stage in range(3)]
        assert [again[lane, stage].next_row for stage in range(3)] == [*starts[1:], 0]
        num_replaying = max((stage for stage, start in enumerate(starts, 1) if start == 0), default=0)
        assert {again[lane, stage].replay_stages for stage in range(3)} == {num_replaying}
    cluster.halted.clear()
    await cluster.run()
    assert await completed(coordinator, task)
    assert coordinator.partitioner.asked == []


async def test_who_goes_on_elsewhere_is_told_to_keep_the_rows_and_who_is_done_is_not(coordinator: Coordinator) -> None:
    task, cluster = audited(), Halting(coordinator)
    await halted(coordinator, cluster, task)
    await go_on_without(coordinator, N1)
    assert [stop.keep for stop in coordinator.workers[N2].stops()] == [True]
    cluster.halted.clear()
    await cluster.run()
    assert await completed(coordinator, task)
    assert coordinator.workers[N2].stops()[-1].keep is False


async def test_rows_computed_again_count_for_nothing_until_they_were_agreed_on(coordinator: Coordinator) -> None:
    """Whoever was sent wrong rows, and never found out, must not go on from them: it would look like the liar."""
    task, cluster = audited(), Halting(coordinator)
    session = await halted(coordinator, cluster, task)
    cluster.halted.add(2)
    await go_on_without(coordinator, N1)
    began_anew = seats(session, *cold(orders(coordinator, 2)))
    assert began_anew
    cluster.halted.add(3)
    await go_on_without(coordinator, N2)
    assert session.epoch == 3
    assert not seats(session, *warm(orders(coordinator, 3))) & began_anew
    cluster.halted.clear()
    await cluster.run()
    assert await completed(coordinator, task)


async def test_a_node_that_lost_the_rows_computes_them_again(coordinator: Coordinator) -> None:
    task, cluster = audited(), Halting(coordinator)
    session = await halted(coordinator, cluster, task)
    coordinator.workers[N3].refusals.append(RowsNotKept("they are not here"))
    await go_on_without(coordinator, N1)
    await coordinator.settle()
    assert session.epoch == 3
    assert N3 not in {node_id for node_id, _ in seats(session, *warm(orders(coordinator, 3)))}
    cluster.halted.clear()
    await cluster.run()
    assert await completed(coordinator, task)
    assert [event.reason for event in coordinator.events.of(SessionReassigned)] == ["rows"]


async def test_who_was_counted_on_may_have_lost_the_rows_of_all_its_seats(coordinator: Coordinator) -> None:
    session = await coordinator.open(audited(), [N1, N2, N3])

    def refused() -> tuple[FaultKind, bool]:
        kind = session.refused(N3, "boot-1", RowsNotKept.code, now_s=0.0)
        return kind, session.excludes(N3, "boot-1", now_s=1e9)

    session.count_on([(N3, LayerRange(0, 2)), (N3, LayerRange(2, 4))])
    assert [refused(), refused()] == [(FaultKind.ROWS, False)] * 2
    session.count_on([])
    assert refused() == (FaultKind.LOAD, True)


async def test_a_node_that_never_has_rows_is_done_without(coordinator: Coordinator) -> None:
    """Once it may say so for each session that counted on it, and not to be asked over and over again."""
    await coordinator.join(N4)
    coordinator.workers[N3].refusals += [RowsNotKept("they are not here")] * 50
    task = audited()
    session = await coordinator.open(task, [N1, N2, N3, N4])
    await coordinator.settle()
    assert [fault.kind for fault in session.faults] == [FaultKind.LOAD]
    assert N3 not in {seat.node_id for lane in session.lanes for seat in lane}


async def test_a_node_that_started_anew_has_nothing_to_go_on_from(coordinator: Coordinator) -> None:
    task, cluster = audited(), Halting(coordinator)
    session = await halted(coordinator, cluster, task)
    await coordinator.join(N2, boot_id="boot-2")
    await coordinator.settle()
    assert session.epoch == 2
    again = orders(coordinator, 2)
    assert warm(again)
    assert N2 not in {node_id for node_id, _ in seats(session, *warm(again))}


async def test_a_dispute_is_decided_with_rows_that_everybody_computes_again(coordinator: Coordinator) -> None:
    task, cluster = audited(max_tokens=30), Halting(coordinator, lies_in_epoch=2)
    session = await halted(coordinator, cluster, task)
    await go_on_without(coordinator, N1)
    cluster.halted.clear()
    await cluster.run()
    assert session.epoch >= 3
    assert {order.start_row for order in orders(coordinator, 3).values()} == {0}
    assert await completed(coordinator, task)
    assert len(coordinator.evidence.kept) == 1


async def test_rows_sent_again_otherwise_than_the_first_time_convict_nobody(coordinator: Coordinator) -> None:
    """Sender and receiver tell different stories of what passed between them, as over any link."""
    task, cluster = audited(max_tokens=30), Halting(coordinator)
    session = await halted(coordinator, cluster, task)
    await go_on_without(coordinator, N3)
    again = orders(coordinator, 2)
    ((lane, stage),) = [
        key for key, order in again.items() if order.start_row > order.next_row and key[1] + 1 < order.replay_stages
    ]
    neighbours = (session.lanes[lane][stage].node_id, session.lanes[lane][stage + 1].node_id)

    def sent(seat: Assignment, row: int, data: bytes) -> bytes:
        is_other = seat.epoch == 2 and (seat.lane, seat.stage) == (lane, stage) and row < seat.first_row
        return bytes([data[0] ^ 1]) + data[1:] if is_other else data

    cluster.conduct = Conduct(send=sent)
    cluster.halted.clear()
    await cluster.run()
    assert session.epoch > 2
    assert session.faults[-1].between == neighbours
    assert await completed(coordinator, task)
    assert not coordinator.evidence.kept


@pytest.mark.parametrize("verification", [Verification.NONE, Verification.AUDIT])
async def test_without_a_commit_there_is_nothing_to_go_on_from(
    coordinator: Coordinator, verification: Verification
) -> None:
    for node_id in SIX[3:]:
        await coordinator.join(node_id)
    f = 0 if verification is Verification.NONE else 1
    task = audited(verification=verification, max_byzantine=f)
    await coordinator.open(task)
    await go_on_without(coordinator, N1)
    assert {order.start_row for order in orders(coordinator, 2).values()} == {0}
