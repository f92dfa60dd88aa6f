"""A gateway on a real port, amid fakes."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import uvicorn

from services.api.app import Surroundings, join
from shared.domain.ids import TaskId
from shared.domain.task import FinishReason
from shared.runtime.config import Config, CoordinationConfig
from tests.fakes.catalogue import (
    ByteVocabulary,
    FakeCatalogue,
    FakeNodes,
    FakeServices,
    FixedVocabularies,
    node_view,
    tokens_of,
)
from tests.fakes.clock import FakeClock
from tests.fakes.planner import LocalPlanner
from tests.fakes.receipts import MemoryReceiptStore
from tests.fakes.scheduler import Conductor, FakeScheduler
from tests.fakes.task_registry import MemoryTaskRegistry

UNVERIFIED = Config(coordination=CoordinationConfig(default_verification="none"))
"""The one fake cluster here has too few nodes to verify."""


@dataclass
class Gateway:
    client: httpx.AsyncClient
    scheduler: FakeScheduler
    registry: MemoryTaskRegistry
    receipts: MemoryReceiptStore
    conductor: Conductor
    catalogue: FakeCatalogue
    nodes: FakeNodes
    services: FakeServices
    clock: FakeClock
    draining: asyncio.Event
    app: object

    async def accepted(self, count: int = 1) -> TaskId:
        """The newest task, once `count` of them were accepted."""
        await until(lambda: len(self.scheduler.submissions) >= count)
        return self.scheduler.submissions[count - 1].task.task_id

    async def answer(self, *batches: str | bytes, reason: FinishReason = FinishReason.STOP, count: int = 1) -> TaskId:
        """Play the cluster for the newest task: one commit per batch, then the end."""
        task_id = await self.accepted(count)
        await self.conductor.start(task_id)
        for batch in batches:
            await self.conductor.commit(task_id, tokens_of(batch))
        await self.conductor.finish(task_id, reason)
        return task_id


async def until(holds: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(limit_s):
        while not holds():  # noqa: ASYNC110  what is waited for tells nobody
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running_gateway(
    config: Config | None = None, *, vocabulary: ByteVocabulary | None = None, max_queue_size: int = 1_000
) -> AsyncIterator[Gateway]:
    clock = FakeClock()
    registry = MemoryTaskRegistry(now=clock.wall_s)
    receipts = MemoryReceiptStore(registry, now=clock.wall_s)
    scheduler = FakeScheduler(registry, max_queue_size=max_queue_size)
    catalogue, nodes, services = FakeCatalogue(), FakeNodes(node_view()), FakeServices()
    outside = Surroundings(
        scheduler=scheduler,
        catalogue=catalogue,
        nodes=nodes,
        planner=LocalPlanner(),
        services=services,
        registry=registry,
        receipts=receipts,
        vocabularies=FixedVocabularies(vocabulary or ByteVocabulary()),
        clock=clock,
    )
    app = join(config or UNVERIFIED, outside)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=5))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", trust_env=False, timeout=10
        ) as client:
            conductor, draining = Conductor(registry), app.state.draining
            yield Gateway(
                client, scheduler, registry, receipts, conductor, catalogue, nodes, services, clock, draining, app
            )
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with running_gateway() as running:
        yield running


async def read_events(response: httpx.Response) -> list[object]:
    """All `data:` of an event stream; JSON where it is."""
    events: list[object] = []
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            events.append(data if data == "[DONE]" else json.loads(data))
    return events
