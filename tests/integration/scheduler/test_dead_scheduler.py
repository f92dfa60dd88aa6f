"""Scheduler processes that die, or sleep, with a task claimed whose session is not open yet."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from shared.contracts.coordinator import OpenSession
from shared.domain.errors import StaleAttempt
from shared.domain.ids import TaskId
from shared.domain.task_state import TaskState
from shared.registry.redis_registry import RedisTaskRegistry, connect_registry
from tests.contract.registry_steps import submit
from tests.fakes.tasks import make_task, make_tokens
from tests.fakes.valkey import ValkeyServer, running_valkey
from tests.integration.runtime.own_process import logged, started
from tests.integration.runtime.served import served
from tests.integration.scheduler.peers import Peers

TAKEOVER_S = 3.0
LIMIT_S = 15.0


class SilentPeers(Peers):
    """Says nothing to who would open a session, until it is let: then the session is opened as it was asked for."""

    def __init__(self, registry: RedisTaskRegistry) -> None:
        super().__init__(registry)
        self.asked = asyncio.Event()
        self.let = asyncio.Event()
        self.stale = 0

    async def open_session(self, body: OpenSession) -> None:
        self.asked.set()
        await self.let.wait()
        try:
            await super().open_session(body)
        except StaleAttempt:
            self.stale += 1
            raise


@dataclass
class Two:
    """The first scheduler process knows the silent peer only, the second one a peer that answers."""

    registry: RedisTaskRegistry
    first: asyncio.subprocess.Process
    silent: SilentPeers
    answering: Peers

    async def claimed_by_the_first(self) -> TaskId:
        """A task that the first has claimed, and whose session it waits for."""
        self.answering.ready = False  # so the second one cannot take it
        task_id = await submit(self.registry, make_task())
        await asyncio.wait_for(self.silent.asked.wait(), LIMIT_S)
        assert (await self.registry.record(task_id)).state is TaskState.COORDINATING
        self.answering.ready = True
        return task_id

    async def completed(self, task_id: TaskId) -> bool:
        return (await self.registry.record(task_id)).state is TaskState.COMPLETED


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


@asynccontextmanager
async def scheduler(valkey: ValkeyServer, peers: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environ = {
        "BUTTERFLY_SCHEDULING__BIND_ADDRESS": "127.0.0.1:0",
        "BUTTERFLY_REDIS__URL": valkey.url,
        "BUTTERFLY_SERVICES__PARTITIONER_URL": peers,
        "BUTTERFLY_SERVICES__COORDINATOR_URL": peers,
        "BUTTERFLY_SERVICES__METRICS_URL": "http://127.0.0.1:9",  # nobody: events are dropped
    }
    async with started(environ, service="scheduler") as process:
        await logged(process, "listening")
        yield process


@pytest.fixture
async def two(valkey: ValkeyServer) -> AsyncIterator[Two]:
    registry = connect_registry(valkey.url, allow_weak_durability=False)
    silent, answering = SilentPeers(registry), Peers(registry)
    async with (
        served(silent.app()) as silent_url,
        served(answering.app()) as answering_url,
        scheduler(valkey, silent_url) as first,
        scheduler(valkey, answering_url),
    ):
        yield Two(registry, first, silent, answering)
        silent.let.set()
    await registry.aclose()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not await condition():
        assert time.monotonic() < limit, "the condition did not come true in time"
        await asyncio.sleep(0.01)


async def test_what_a_scheduler_had_claimed_when_it_died_is_with_another_one_within_3_s(two: Two) -> None:
    task_id = await two.claimed_by_the_first()
    two.first.kill()
    died_s = time.monotonic()
    await until(lambda: two.completed(task_id))
    waited_s = time.monotonic() - died_s
    print(f"\nkilled between claim and session: completed {waited_s:.2f} s later")
    assert waited_s <= TAKEOVER_S
    assert [(wanted.task_id, wanted.attempt) for wanted in two.answering.opened] == [(task_id, 2)]


async def test_a_scheduler_that_only_slept_neither_loses_nor_doubles_what_it_had_claimed(two: Two) -> None:
    task_id = await two.claimed_by_the_first()
    two.first.send_signal(signal.SIGSTOP)
    await until(lambda: two.completed(task_id))
    two.silent.let.set()
    two.first.send_signal(signal.SIGCONT)

    async def was_refused() -> bool:
        return two.silent.stale > 0

    await until(was_refused)
    record = await two.registry.record(task_id)
    assert (record.state, record.attempt, record.epoch) == (TaskState.COMPLETED, 2, 1)
    assert await two.registry.tokens(task_id) == make_tokens(7)
    another = await submit(two.registry, make_task())  # both work on
    await until(lambda: two.completed(another))
