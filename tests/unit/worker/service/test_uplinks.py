"""A worker and several coordinators: it finds them all, and tells each what is about its sessions."""

import random
from collections.abc import AsyncIterator

import pytest

from services.worker.domain.identity import CoordinatorKey, Identity
from services.worker.ports import JoinRefused
from services.worker.service.drafts import DraftSender
from services.worker.service.membership import Membership, registration
from services.worker.service.outbox import Outbox
from services.worker.service.uplinks import UNNAMED_S, Uplink, Uplinks
from shared.contracts.messages import Heartbeat, LinkFault, SessionFault
from shared.domain.errors import NodeNotFound, PeerUnavailable
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.resilience.hooks import PeerHooks
from shared.resilience.http_client import PeerClient
from shared.runtime.tasks import BackgroundTasks
from tests.fakes.clock import FakeClock
from tests.fakes.identities import KEYS, N1, capability
from tests.fakes.tasks import make_token
from tests.fakes.worker_parts import MemoryCluster, Order, RecordingCoordinator

A, B, DOOR = "http://a:1", "http://b:1", "http://door:1"


class Bench:
    def __init__(self, *joins: str) -> None:
        self.clock = FakeClock()
        self.worker = MemoryCluster("a", clock=self.clock)["a"]
        self.coordinators: dict[str, RecordingCoordinator] = {url: RecordingCoordinator() for url in (A, B, DOOR)}
        for coordinator in self.coordinators.values():
            coordinator.coordinators = (A, B)
        self.refused: list[str] = []
        self.tasks = BackgroundTasks(self.clock)
        self.uplinks = Uplinks(
            joins=joins, make=self._make, on_refused=self.refused.append, tasks=self.tasks, clock=self.clock
        )

    def _make(self, url: str, uplinks: Uplinks) -> Uplink:
        coordinator, tasks = self.coordinators[url], BackgroundTasks(self.clock)

        membership = Membership(
            coordinator=coordinator,
            request=registration(Identity(N1, KEYS[N1]), capability(N1), "http://w:1", boot_id="boot", coordinator=url),
            coordinator_key=CoordinatorKey(),
            stages=self.worker.stages,
            seating=self.worker.seating,
            sessions=self.worker.sessions,
            on_joined=lambda joined: uplinks.joined(url, joined),
            on_heard=lambda coordinators: uplinks.heard(url, coordinators),
            on_refused=lambda reason: uplinks.refused(url, reason),
            is_told_here=lambda seat: uplinks.is_told(url, seat),
            clock=self.clock,
            rng=random.Random(1),
        )
        drafts = DraftSender(coordinator=coordinator, tasks=tasks, clock=self.clock)
        outbox = Outbox(coordinator=coordinator, clock=self.clock)
        client = PeerClient(name=url, base_url=url, hooks=PeerHooks(), now=self.clock.now_s)
        return Uplink(membership, outbox, drafts, tasks, client.state, client.aclose)

    async def start(self) -> None:
        self.tasks.loop("coordinators", self.uplinks.watch)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await self.clock.settle()

    async def advance(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            await self.clock.advance(0.25)
            await self.settle()

    def is_member_at(self, url: str) -> bool:
        """Whether it has been heard of there since the last look."""
        told = self.coordinators[url].told
        beats = [report for report in told if isinstance(report, Heartbeat)]
        told.clear()
        return bool(beats)

    async def stop(self) -> None:
        await self.tasks.stop(1.0)
        await self.uplinks.stop(1.0)
        await self.worker.stop()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench(A)
    yield bench
    await bench.stop()


async def test_a_worker_that_joins_at_one_becomes_a_member_at_all(bench: Bench) -> None:
    with pytest.raises(PeerUnavailable):
        await bench.uplinks.check()
    await bench.start()
    await bench.advance(1.0)
    await bench.uplinks.check()
    assert bench.is_member_at(A)
    assert bench.is_member_at(B)


async def test_where_several_answer_it_goes_to_the_one_that_did() -> None:
    bench = Bench(DOOR)
    bench.coordinators[DOOR].reach_at = A
    await bench.start()
    await bench.advance(2.0)
    assert bench.is_member_at(A)
    assert bench.is_member_at(B)
    assert not bench.is_member_at(DOOR)
    assert len(bench.coordinators[DOOR].registered) == 1
    await bench.stop()


async def test_a_coordinator_that_nobody_names_is_left_alone_and_found_again(bench: Bench) -> None:
    await bench.start()
    await bench.advance(1.0)
    away, there = bench.coordinators[B], bench.coordinators[A]
    there.coordinators = (A,)
    away.errors = [PeerUnavailable("away")] * 1_000
    await bench.advance(UNNAMED_S + 2.0)
    tries = len(away.errors)
    await bench.advance(10.0)
    assert len(away.errors) == tries
    away.errors.clear()
    there.coordinators = (A, B)
    await bench.advance(2.0)
    assert bench.is_member_at(B)


async def test_the_last_coordinator_is_never_left_alone(bench: Bench) -> None:
    for coordinator in bench.coordinators.values():
        coordinator.coordinators = ()
    await bench.start()
    bench.coordinators[A].errors = [PeerUnavailable("away")] * 20
    await bench.advance(60.0)
    assert bench.is_member_at(A)


async def test_what_is_about_a_seat_goes_to_the_coordinator_that_gave_the_order(bench: Bench) -> None:
    await bench.start()
    await bench.advance(1.0)
    fault = SessionFault(task_id=TaskId("t"), epoch=Epoch(1), lane=0, stage=0, error_code="x", error="")
    bench.uplinks.report(fault, B)
    everybody = LinkFault(peer=NodeId("n"), outgoing=True, reason="")
    bench.uplinks.report(everybody, None)
    await bench.settle()
    assert [report for report in bench.coordinators[A].told if not isinstance(report, Heartbeat)] == [everybody]
    assert [report for report in bench.coordinators[B].told if not isinstance(report, Heartbeat)] == [fault, everybody]


async def test_a_coordinator_that_is_away_holds_up_no_drafts_of_another(bench: Bench) -> None:
    await bench.start()
    await bench.advance(1.0)
    seats = []
    for name, url in (("t1", A), ("t2", B)):
        order = Order(name, (1, 2, 3), 5, ["a"])
        assignment = MemoryCluster("a").assignment(order, 0)
        await bench.worker.stages.load(assignment.stage_ref)
        await bench.worker.sessions.assign(assignment, url)
        seats += [one.seat for one in bench.worker.seating if one.seat.key.task_id == name]
    bench.coordinators[A].gate.clear()
    for seat in seats:
        bench.uplinks.add(seat, 3, make_token(1))
    await bench.settle()
    drafts = [report for report in bench.coordinators[B].told if report.type == "draft_tokens"]
    assert [[draft.task_id for draft in report.drafts] for report in drafts] == [["t2"]]
    bench.coordinators[A].gate.set()


async def test_seats_of_a_coordinator_that_is_gone_are_told_to_those_left(bench: Bench) -> None:
    await bench.start()
    await bench.advance(1.0)
    assignment = MemoryCluster("a").assignment(Order("t", (1, 2, 3), 5, ["a"]), 0)
    await bench.worker.stages.load(assignment.stage_ref)
    await bench.worker.sessions.assign(assignment, "http://gone")
    await bench.advance(1.0)
    for url in (A, B):
        beats = [report for report in bench.coordinators[url].told if isinstance(report, Heartbeat)]
        assert [position.task_id for position in beats[-1].sessions] == ["t"]


async def test_whose_token_a_command_shows_is_who_commands(bench: Bench) -> None:
    bench.coordinators[B].register_token = "of b"
    await bench.start()
    await bench.advance(1.0)
    assert await bench.uplinks.commander("of b") == B
    assert await bench.uplinks.commander("coordinator 1") == A
    assert await bench.uplinks.commander("anybody's") is None


async def test_only_when_nobody_wants_it_a_worker_gives_up(bench: Bench) -> None:
    await bench.start()
    await bench.advance(1.0)
    bench.coordinators[A].coordinators = bench.coordinators[B].coordinators = ()
    bench.coordinators[A].errors = [NodeNotFound("who?"), JoinRefused("evicted")]
    await bench.advance(2.0)
    assert bench.refused == []
    assert bench.is_member_at(B)
    bench.coordinators[B].errors = [NodeNotFound("who?"), JoinRefused("evicted")]
    await bench.advance(2.0)
    assert bench.refused == ["evicted"]
