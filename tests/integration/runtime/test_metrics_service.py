"""Events on their whole way: published in one process' app, posted, counted, shown and streamed by another."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from services.metrics.app import create_app
from shared.events.catalogue import StepTimed, TaskCompleted
from shared.runtime.clock import SystemClock
from shared.runtime.config import Config, load_config
from shared.runtime.telemetry import Telemetry
from tests.integration.runtime.served import served


def config_with(**changes: str) -> Config:
    return load_config(None, {f"BUTTERFLY_{name}": value for name, value in changes.items()})


@asynccontextmanager
async def metrics_service(token: str = "") -> AsyncIterator[tuple[str, httpx.AsyncClient]]:
    app = create_app(config_with(SECURITY__SERVICE_TOKEN=token))
    headers = {"X-Butterfly-Service-Token": token}
    async with served(app) as url, httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        yield url, client


@pytest.mark.parametrize("token", ["", "secret"])
async def test_what_a_service_publishes_is_counted_here_and_in_its_own_series(token: str) -> None:
    async with metrics_service(token) as (url, client):
        config = config_with(SERVICES__METRICS_URL=url, SECURITY__SERVICE_TOKEN=token)
        telemetry = Telemetry(source="coordinator", address="127.0.0.1:8083", config=config, clock=SystemClock())
        async with telemetry.running():
            telemetry.events.publish(TaskCompleted("t1", 250.0, ("n1",)))
        snapshot = (await client.get("/snapshot")).json()
        assert snapshot["tasks_completed"] == 1
        assert snapshot["task_latency"]["p50_ms"] == pytest.approx(250.0, rel=0.01)
        assert telemetry.registry.get_sample_value("tasks_total", {"status": "completed"}) == 1
        assert telemetry.registry.get_sample_value("butterfly_events_dropped_total") == 0
        discovered = (await client.get("/sd/prometheus")).json()
        assert discovered == [{"targets": ["127.0.0.1:8083"], "labels": {"service": "coordinator"}}]


async def test_a_dead_metrics_service_does_not_hold_up_a_stop() -> None:
    config = config_with(SERVICES__METRICS_URL="http://127.0.0.1:1")
    telemetry = Telemetry(source="api", address="", config=config, clock=SystemClock())
    async with telemetry.running():
        telemetry.events.publish(TaskCompleted("t1", 1.0))
    assert telemetry.registry.get_sample_value("butterfly_events_dropped_total") == 1


async def test_a_worker_without_token_may_claim_its_steps_and_nothing_else() -> None:
    async with metrics_service("secret") as (url, client):
        config = config_with(SERVICES__METRICS_URL=url)
        worker = Telemetry(source="n1", address="10.0.0.66:22", config=config, clock=SystemClock())
        async with worker.running():
            worker.events.publish(StepTimed("n1", 0, 1, 8.0))
            worker.events.publish(TaskCompleted("t1", 1.0))
        snapshot = (await client.get("/snapshot")).json()
        assert snapshot["reception"]["events_received"] == {"StepTimed": 1}
        assert snapshot["reception"]["events_refused"] == 1
        assert (await client.get("/sd/prometheus")).json() == []
        assert (await client.get("/snapshot", headers={"X-Butterfly-Service-Token": ""})).status_code == 401


async def test_the_stream_shows_the_wanted_events_as_they_come() -> None:
    async with metrics_service() as (url, client):
        async with client.stream("GET", "/stream", params={"types": "TaskCompleted"}) as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == ": connected"
            config = config_with(SERVICES__METRICS_URL=url)
            telemetry = Telemetry(source="n1", address="", config=config, clock=SystemClock())
            async with telemetry.running():
                telemetry.events.publish(StepTimed("n1", 0, 1, 8.0))
                telemetry.events.publish(TaskCompleted("t1", 1.0))
                shown = [await anext(lines) for _ in range(4)]
        assert shown[2] == "event: TaskCompleted"
        assert json.loads(shown[3].removeprefix("data: "))["subject"] == "t1"


async def test_queries_refuse_nonsense_and_unknown_nodes() -> None:
    async with metrics_service() as (_, client):
        assert (await client.get("/query/task-latency", params={"since": "nan"})).status_code == 422
        assert (await client.get("/query/task-latency", params={"since": "0"})).json()["count"] == 0
        assert (await client.get("/query/system")).json()["nodes"] == {}
        unknown = await client.get("/query/nodes/n9")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "node_not_found")
        assert (await client.post("/events", json={"source": "x", "surprise": 1})).status_code == 422


async def test_the_service_shows_how_events_fare_and_exports_the_roll_up_apart() -> None:
    async with metrics_service() as (url, client):
        config = config_with(SERVICES__METRICS_URL=url)
        telemetry = Telemetry(source="coordinator", address="", config=config, clock=SystemClock())
        async with telemetry.running():
            telemetry.events.publish(TaskCompleted("t1", 250.0))
        own = (await client.get("/metrics")).text
        assert 'butterfly_metrics_events_received_total{type="TaskCompleted"} 1.0' in own
        assert "tasks_total{" not in own
        rolled_up = (await client.get("/export/prometheus")).text
        assert 'tasks_total{status="completed"} 1.0' in rolled_up
