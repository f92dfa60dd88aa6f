"""What goes with a call from hop to hop, and what an operator sees of it: over real servers."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import APIRouter, Request
from pydantic import BaseModel

from shared.domain.deadline import Deadline
from shared.domain.errors import DeadlineExceeded, PeerUnavailable
from shared.resilience.context import DEADLINE_HEADER, SERVICE_TOKEN_HEADER
from shared.resilience.hooks import PeerHooks
from shared.resilience.http_client import PeerClient, PeerClients
from shared.resilience.retry import RetryPolicy
from shared.runtime.app import make_app
from shared.runtime.clock import SystemClock
from shared.runtime.tasks import BackgroundTasks
from tests.integration.runtime.served import served


class Told(BaseModel):
    """What each hop was told it has left, in ms."""

    left_ms: list[int]


def client_of(url: str) -> PeerClient:
    return PeerClient(name="next", base_url=url, hooks=PeerHooks(), now=time.monotonic)


@asynccontextmanager
async def hop(further: PeerClient | None, *, in_background: bool = False) -> AsyncIterator[PeerClient]:
    """A service that asks `further` with an ample limit of its own, if there is a further one."""
    router = APIRouter()
    tasks = BackgroundTasks()

    @router.post("/told")
    async def told(request: Request) -> Told:
        left_ms = int(request.headers[DEADLINE_HEADER])
        if further is None:
            return Told(left_ms=[left_ms])
        asked = further.post("/told", None, Told, timeout_s=20.0)
        answer = await (tasks.start(asked, name="ask") if in_background else asked)
        return Told(left_ms=[left_ms, *answer.left_ms])

    async with served(make_app("hop", routers=[router])) as url:
        client = client_of(url)
        yield client
        await client.aclose()


async def test_each_hop_has_less_time_than_the_one_before_whatever_its_own_limit() -> None:
    async with hop(None) as last, hop(last) as middle, hop(middle) as first:
        answer = await first.post("/told", None, Told, timeout_s=5.0)
        assert len(answer.left_ms) == 3
        assert 5_000 > answer.left_ms[0] > answer.left_ms[1] > answer.left_ms[2] > 0
        deadline = Deadline.after(3.0, now_s=time.monotonic())
        answer = await first.post("/told", None, Told, timeout_s=5.0, deadline=deadline)
        assert 3_000 > answer.left_ms[0] > answer.left_ms[1] > answer.left_ms[2] > 0


async def test_work_that_outlives_its_request_is_not_bound_by_the_requests_deadline() -> None:
    async with hop(None) as last, hop(last, in_background=True) as first:
        answer = await first.post("/told", None, Told, timeout_s=5.0)
        assert answer.left_ms[0] < 5_000 < answer.left_ms[1]


async def test_a_route_that_usually_takes_longer_than_is_left_answers_504_at_once() -> None:
    router = APIRouter()
    asked = 0

    @router.get("/slow")
    async def slow() -> Told:
        nonlocal asked
        asked += 1
        await SystemClock().sleep(0.3)
        return Told(left_ms=[])

    async with served(make_app("slow", routers=[router])) as url:
        client = client_of(url)
        for _ in range(5):
            await client.get("/slow", Told, timeout_s=10.0)
        with pytest.raises(DeadlineExceeded, match="usually takes"):
            await client.get("/slow", Told, deadline=Deadline.after(0.25, now_s=time.monotonic()))
        assert asked == 5
        assert await client.breaker_state("control") == "closed"
        await client.aclose()


async def test_state_shows_breakers_budget_and_pool_to_holders_of_the_service_token_alone() -> None:
    peers = PeerClients(hooks=PeerHooks(), now=time.monotonic, retry=RetryPolicy(attempts=1))
    gone = peers.get("partitioner", "http://127.0.0.1:1")
    for _ in range(5):
        with pytest.raises(PeerUnavailable):
            await gone.get("/told", Told)
    app = make_app("scheduler", routers=[], service_token="secret", public_paths=("/",), peers=peers.states)
    async with served(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as operator:
        assert (await operator.get("/state/peers")).status_code == 401
        answer = await operator.get("/state/peers", headers={SERVICE_TOKEN_HEADER: "secret"})
        shown = answer.json()
    await peers.aclose()
    assert shown["service"] == "scheduler"
    (peer,) = shown["peers"]
    assert (peer["peer"], peer["address"]) == ("partitioner", "127.0.0.1:1")
    (breaker,) = peer["breakers"]
    assert (breaker["operation"], breaker["state"]) == ("control", "opened")
    assert 0 < breaker["open_for_s"] <= 72
    assert peer["retry_budget"] == 20
    assert peer["pool"] == {"calls": 0, "max_connections": 100, "timeouts": 0, "rebuilds": 0}
