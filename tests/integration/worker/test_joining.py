"""What a worker makes of the answers to its registration, over a real port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi import APIRouter
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp

from services.worker.clients.coordinator import HttpCoordinator
from services.worker.ports import JoinRefused
from shared.domain.errors import Forbidden, InvalidInput, NoCapacity, PeerUnavailable
from shared.resilience.hooks import PeerHooks
from shared.resilience.http_client import PeerClient
from shared.resilience.retry import RetryPolicy
from shared.runtime.app import make_app
from shared.runtime.clock import SystemClock
from shared.runtime.giving_up import EXIT_REFUSED
from tests.fakes.coordinator import JOIN_TOKEN
from tests.fakes.identities import N1, capability, registration
from tests.integration.runtime.served import served
from tests.integration.worker.workers import refused_process, serving_coordinator

REQUEST = registration(capability(N1), "http://127.0.0.1:1")


@asynccontextmanager
async def joining(url: str) -> AsyncIterator[HttpCoordinator]:
    client = PeerClient(
        name="coordinator", base_url=url, hooks=PeerHooks(), now=SystemClock().now_s, retry=RetryPolicy(base_s=0.001)
    )
    yield HttpCoordinator(client, join_token=JOIN_TOKEN)
    await client.aclose()


def coordinator_that_raises(error: Exception) -> ASGIApp:
    router = APIRouter()

    @router.post("/nodes")
    async def refuse() -> None:
        raise error

    return make_app("coordinator", routers=[router])


def web_site() -> ASGIApp:
    app = Starlette()
    app.add_route("/livez", lambda _: HTMLResponse("<p>Welcome"))
    return app


async def test_a_worker_with_a_wrong_join_token_ends_with_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    async with serving_coordinator(tiny_model) as coordinator:
        code, last_line = await refused_process(coordinator.url, tmp_path, join_token="other")
    assert code == EXIT_REFUSED
    assert last_line == (
        f"butterfly worker: the coordinator at {coordinator.url} refuses this worker (the join token is wrong):"
        " give it the cluster's join token (--token, or security.join_token)"
    )


@pytest.mark.parametrize(
    ("app", "why"),
    [
        (make_app("api", routers=[]), "its api answers there"),
        (make_app("scheduler", routers=[], service_token="secret"), "its scheduler answers there"),
        (make_app("coordinator", routers=[]), "there is nothing at /nodes"),
        (Starlette(), "status 404"),
        (web_site(), "breaks the contract"),
    ],
)
async def test_an_address_without_a_coordinator_is_refused(app: ASGIApp, why: str) -> None:
    async with served(app) as url, joining(url) as coordinator:
        with pytest.raises(JoinRefused) as refused:
            await coordinator.register(REQUEST)
    assert refused.value.message.startswith(f"there is no coordinator at {url} (")
    assert why in refused.value.message
    assert "--join" in refused.value.message


@pytest.mark.parametrize("error", [Forbidden("banned"), InvalidInput("a strange address")])
async def test_a_coordinator_that_says_no_is_believed(error: Exception) -> None:
    async with served(coordinator_that_raises(error)) as url, joining(url) as coordinator:
        with pytest.raises(JoinRefused, match=str(error)):
            await coordinator.register(REQUEST)


@pytest.mark.parametrize("error", [NoCapacity("full"), PeerUnavailable("away")])
async def test_a_coordinator_that_cannot_now_is_asked_again(error: Exception) -> None:
    async with served(coordinator_that_raises(error)) as url, joining(url) as coordinator:
        with pytest.raises(type(error)):
            await coordinator.register(REQUEST)


async def test_a_coordinator_that_is_away_is_asked_again() -> None:
    async with joining("http://127.0.0.1:9") as coordinator:
        with pytest.raises(PeerUnavailable):
            await coordinator.register(REQUEST)
