"""200 concurrent callers against a peer that is down, flapping or slow: over real sockets."""

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from fastapi import APIRouter, Response

from shared.contracts.problem import Ack
from shared.domain.errors import ButterflyError, CircuitOpen, DeadlineExceeded, PeerUnavailable
from shared.resilience.breaker import BreakerPolicy
from shared.resilience.hooks import BreakerChange, PeerHooks, Retried
from shared.resilience.http_client import PeerClient
from shared.resilience.retry import RetryPolicy
from shared.runtime.app import make_app
from tests.integration.runtime.served import served

CALLERS = 200
ROUNDS = 5
AMPLIFICATION = 1.2


class Peer:
    """A service in a bad state, which counts what reaches it."""

    def __init__(self, behave: Callable[[], Awaitable[int]]) -> None:
        self.arrived = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._behave = behave

    def router(self) -> APIRouter:
        router = APIRouter()

        @router.post("/work")
        async def work() -> Response:
            self.arrived += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                status = await self._behave()
            finally:
                self.in_flight -= 1
            return Response("{}", status)

        return router


class Caller:
    """200 callers that share one client. The circuit stays open for as long as `open_s` says."""

    def __init__(self, url: str, *, open_s: float) -> None:
        self.changes: list[BreakerChange] = []
        self.retries = 0
        self.calls = 0
        self.client = PeerClient(
            name="peer",
            base_url=url,
            hooks=PeerHooks(breaker_changed=self.changes.append, retried=self._retried),
            now=time.monotonic,
            retry=RetryPolicy(base_s=0.01, cap_s=0.05),
            breaker=BreakerPolicy(open_s=open_s),
            rng=random.Random(1),
        )

    async def call(self, *, timeout_s: float = 5.0) -> ButterflyError | None:
        self.calls += 1
        try:
            await self.client.post("/work", None, Ack, idempotent=True, timeout_s=timeout_s)
        except ButterflyError as error:
            return error
        return None

    async def all_at_once(self, *, timeout_s: float = 5.0) -> list[ButterflyError | None]:
        return list(await asyncio.gather(*(self.call(timeout_s=timeout_s) for _ in range(CALLERS))))

    def _retried(self, retried: Retried) -> None:
        self.retries += 1


@asynccontextmanager
async def callers(peer: Peer, *, open_s: float) -> AsyncIterator[Caller]:
    async with served(make_app("peer", routers=[peer.router()])) as url:
        caller = Caller(url, open_s=open_s)
        try:
            yield caller
        finally:
            await caller.client.aclose()


async def fails() -> int:
    return 503


async def test_a_peer_that_is_down_is_asked_by_few_and_probed_by_two() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        caller = Caller(f"http://127.0.0.1:{closed.getsockname()[1]}", open_s=0.2)
        answers: list[ButterflyError | None] = []
        for _ in range(ROUNDS):
            answers = await caller.all_at_once()
            assert all(isinstance(answer, PeerUnavailable) for answer in answers)
        assert sum(isinstance(answer, CircuitOpen) for answer in answers) > CALLERS / 2
        assert (caller.calls + caller.retries) / caller.calls <= AMPLIFICATION
        await caller.client.aclose()


async def test_callers_of_a_failing_peer_do_not_multiply_and_only_two_of_them_probe() -> None:
    peer = Peer(fails)
    async with callers(peer, open_s=0.2) as caller:
        await caller.all_at_once()
        assert peer.arrived <= AMPLIFICATION * CALLERS
        for _ in range(ROUNDS):
            peer.arrived = peer.most_in_flight = 0
            await asyncio.sleep(0.25)  # the circuit's own time: it lets probes out now
            await caller.all_at_once()
            assert peer.most_in_flight <= 2
            assert 1 <= peer.arrived <= 4
        assert (caller.calls + caller.retries) / caller.calls <= AMPLIFICATION


async def test_a_slow_peer_has_two_probes_in_flight_however_many_call() -> None:
    go_on = asyncio.Event()
    is_slow = False

    async def behave() -> int:
        if is_slow:
            await go_on.wait()
            return 200
        return 503

    peer = Peer(behave)
    async with callers(peer, open_s=0.2) as caller:
        await caller.all_at_once()
        is_slow, peer.most_in_flight, peer.arrived = True, 0, 0
        await asyncio.sleep(0.25)
        waiting = asyncio.ensure_future(caller.all_at_once(timeout_s=30.0))
        while peer.in_flight < 2:  # noqa: ASYNC110  the other side of a socket
            await asyncio.sleep(0.005)
        later = await caller.all_at_once(timeout_s=30.0)
        assert all(isinstance(answer, CircuitOpen) for answer in later)
        assert peer.most_in_flight == peer.arrived == 2
        go_on.set()
        answers = await waiting
        assert sum(answer is None for answer in answers) >= 2
        assert await caller.client.breaker_state("control") == "closed"
        assert caller.changes[-1].state == "closed"


async def test_a_slow_peer_that_times_out_is_not_asked_more_often_for_it() -> None:
    never = asyncio.Event()

    async def hang() -> int:
        await never.wait()
        return 200

    peer = Peer(hang)
    async with callers(peer, open_s=30.0) as caller:
        answers = await caller.all_at_once(timeout_s=0.3)
        assert all(isinstance(answer, PeerUnavailable | DeadlineExceeded) for answer in answers)
        assert peer.arrived <= AMPLIFICATION * CALLERS
        assert await caller.client.breaker_state("control") == "opened"
        never.set()


async def test_a_flapping_peer_costs_no_more_than_a_fifth_and_is_used_again_when_it_is_well() -> None:
    rng = random.Random(3)
    is_well = False

    async def flap() -> int:
        return 200 if is_well or rng.random() < 0.5 else 503

    peer = Peer(flap)
    async with callers(peer, open_s=0.1) as caller:
        for _ in range(10):
            await caller.all_at_once()
            await asyncio.sleep(0.05)
        assert peer.arrived <= AMPLIFICATION * caller.calls
        assert (caller.calls + caller.retries) / caller.calls <= AMPLIFICATION
        is_well = True
        while await caller.client.breaker_state("control") != "closed":
            await caller.call()
            await asyncio.sleep(0.01)
        assert await caller.all_at_once() == [None] * CALLERS


@pytest.mark.parametrize("begins_open", [False, True])
async def test_cancellations_never_change_the_state(begins_open: bool) -> None:
    answer = asyncio.Event()

    async def wait() -> int:
        if not begins_open or peer.arrived > CALLERS:
            await answer.wait()
            return 200
        return 503

    peer = Peer(wait)
    async with callers(peer, open_s=0.2) as caller:
        if begins_open:
            while await caller.client.breaker_state("control") != "opened":
                await caller.call()
            peer.arrived = CALLERS
            await asyncio.sleep(0.25)
        before = list(caller.changes)
        calls = [asyncio.ensure_future(caller.call(timeout_s=30.0)) for _ in range(CALLERS)]
        while peer.in_flight < (2 if begins_open else 50):  # noqa: ASYNC110  the other side of a socket
            await asyncio.sleep(0.005)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        expected = [*before, *([BreakerChange("peer", "control", "half-opened")] if begins_open else [])]
        assert caller.changes == expected
        answer.set()  # the exchanges that were left behind end by themselves and count as what they are
        while await caller.client.breaker_state("control") != "closed":  # noqa: ASYNC110  as above
            await asyncio.sleep(0.005)
        assert peer.most_in_flight <= CALLERS
        assert await caller.call() is None
