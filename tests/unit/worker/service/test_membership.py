import random
from collections.abc import AsyncIterator, Sequence

import pytest

from services.worker.domain.identity import CoordinatorKey, Identity
from services.worker.ports import JoinRefused
from services.worker.service.membership import Membership, registration
from shared.contracts.coordinator import Registered
from shared.contracts.messages import Heartbeat, Leave
from shared.domain.errors import NodeNotFound, PeerUnavailable
from shared.domain.node_proof import check_proof
from tests.fakes.clock import FakeClock
from tests.fakes.identities import COORDINATOR_KEY, COORDINATOR_URL, KEYS, N1, capability
from tests.fakes.worker_parts import MemoryCluster, Order

BEAT_S = 0.5


class Bench:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.cluster = MemoryCluster("a", clock=self.clock)
        self.worker = self.cluster["a"]
        self.coordinator = self.cluster.coordinator
        self.joined: list[Registered] = []
        self.refused: list[str] = []
        self.heard: list[Sequence[str]] = []
        identity = Identity(N1, KEYS[N1])
        self.coordinator_key = CoordinatorKey()
        self.membership = Membership(
            coordinator=self.coordinator,
            request=registration(identity, capability(N1), "http://a:1", boot_id="boot", coordinator=COORDINATOR_URL),
            coordinator_key=self.coordinator_key,
            stages=self.worker.stages,
            seating=self.worker.seating,
            sessions=self.worker.sessions,
            on_joined=self.joined.append,
            on_heard=self.heard.append,
            on_refused=self.refused.append,
            is_told_here=lambda seat: seat.report_to == COORDINATOR_URL,
            clock=self.clock,
            rng=random.Random(1),
        )

    async def start(self) -> None:
        self.worker.tasks.loop("membership", self.membership.live)
        await self.clock.settle()

    def beats(self) -> list[Heartbeat]:
        return [report for report in self.coordinator.told if isinstance(report, Heartbeat)]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.worker.stop()


async def test_a_worker_joins_and_beats_at_the_rate_it_is_told(bench: Bench) -> None:
    assert not bench.membership.is_joined
    await bench.start()
    await bench.clock.advance(3.2 * BEAT_S)
    assert bench.membership.is_joined
    assert [beat.boot_id for beat in bench.beats()] == ["boot"] * 3
    assert len(bench.joined) == 1


async def test_a_worker_proves_who_joins_and_where(bench: Bench) -> None:
    await bench.start()
    (request,) = bench.coordinator.registered
    check_proof(
        request.proof.signed(),
        node_id=N1,
        public_key=bytes.fromhex(request.public_key),
        address="http://a:1",
        boot_id="boot",
        coordinators=[COORDINATOR_URL],
    )


async def test_a_worker_knows_whose_orders_it_takes_from_its_registration_on(bench: Bench) -> None:
    assert bench.coordinator_key.value is None
    await bench.start()
    assert bench.coordinator_key.value == COORDINATOR_KEY.public_key


async def test_a_worker_tries_to_join_until_the_coordinator_is_there(bench: Bench) -> None:
    bench.coordinator.errors += [PeerUnavailable("away")] * 3
    await bench.start()
    await bench.clock.advance(5.0)
    assert len(bench.coordinator.registered) == 1


async def test_a_worker_that_is_refused_says_so_once_and_asks_no_more(bench: Bench) -> None:
    bench.coordinator.errors.append(JoinRefused("the join token is wrong"))
    await bench.start()
    await bench.clock.advance(60.0)
    assert bench.refused == ["the join token is wrong"]
    assert bench.coordinator.registered == []
    assert not bench.membership.holds("coordinator 1")


async def test_a_worker_that_was_forgotten_joins_again(bench: Bench) -> None:
    await bench.start()
    bench.coordinator.errors.append(NodeNotFound("register again"))
    await bench.clock.advance(2 * BEAT_S)
    assert len(bench.coordinator.registered) == 2
    assert bench.membership.holds("coordinator 2")
    assert not bench.membership.holds("coordinator 1")


async def test_a_beat_that_does_not_arrive_is_followed_by_the_next(bench: Bench) -> None:
    await bench.start()
    bench.coordinator.errors.append(PeerUnavailable("away"))
    await bench.clock.advance(2 * BEAT_S)
    assert len(bench.beats()) == 1
    assert len(bench.coordinator.registered) == 1


async def test_a_command_that_overtakes_the_answer_to_the_registration_is_believed(bench: Bench) -> None:
    bench.coordinator.gate.clear()
    await bench.start()
    asked = bench.worker.tasks.start(bench.membership.answered(), name="command")
    await bench.clock.settle()
    assert not asked.done()
    bench.coordinator.gate.set()
    await bench.clock.settle()
    assert asked.done()
    assert bench.membership.holds("coordinator 1")


async def test_a_beat_tells_of_stages_sessions_and_draining(bench: Bench) -> None:
    order = Order("task", (1, 2, 3), 5, ["a"])
    await bench.cluster.assign(order)
    await bench.start()
    await bench.clock.advance(BEAT_S)
    beat = bench.beats()[-1]
    assert [str(ref.layers) for ref in beat.stages] == ["0-6"]
    assert beat.slots_used == 1
    assert [(position.task_id, position.epoch, position.rows) for position in beat.sessions] == [("task", 1, 0)]
    assert not beat.draining


async def test_a_worker_that_stops_says_so(bench: Bench) -> None:
    await bench.start()
    await bench.membership.leave()
    assert bench.coordinator.told[-1] == Leave(boot_id="boot")


async def test_a_coordinator_hears_of_its_own_seats_and_how_many_slots_others_hold(bench: Bench) -> None:
    own, other = Order("own", (1, 2, 3), 5, ["a"]), Order("other", (1, 2, 3), 5, ["a"])
    await bench.cluster.assign(own)
    await bench.worker.sessions.assign(bench.cluster.assignment(other, 0), "http://another")
    await bench.start()
    await bench.clock.advance(BEAT_S)
    beat = bench.beats()[-1]
    assert [position.task_id for position in beat.sessions] == ["own"]
    assert (beat.slots_used, beat.slots_elsewhere) == (2, (1,))


async def test_every_answer_tells_of_the_coordinators_that_are_here(bench: Bench) -> None:
    bench.coordinator.coordinators = ("http://x", "http://y")
    await bench.start()
    await bench.clock.advance(BEAT_S)
    assert bench.heard == [("http://x", "http://y")] * 2
