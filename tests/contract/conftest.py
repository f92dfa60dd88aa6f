"""Fixtures of the contract suites."""

from collections.abc import AsyncIterator, Iterator

import pytest

from shared.registry.base import TaskRegistry
from shared.registry.connection import RedisClients, make_clients
from shared.registry.redis_registry import connect_registry
from tests.fakes.task_registry import MemoryTaskRegistry
from tests.fakes.valkey import ValkeyServer, running_valkey


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[TaskRegistry]:
    if request.param == "memory":
        yield MemoryTaskRegistry()
        return
    server: ValkeyServer = request.getfixturevalue("valkey")
    server.empty()
    registry = connect_registry(server.url, allow_weak_durability=False)
    yield registry
    await registry.aclose()


@pytest.fixture(params=["memory", "redis"])
async def clients(request: pytest.FixtureRequest) -> AsyncIterator[RedisClients | None]:
    """Of an empty Redis; None: the suite runs over the fake in memory."""
    if request.param == "memory":
        yield None
        return
    server: ValkeyServer = request.getfixturevalue("valkey")
    server.empty()
    clients = make_clients(server.url)
    yield clients
    await clients.aclose()
