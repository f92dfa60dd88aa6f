"""The scheduler as a process would run it: HTTP on a real port, a real Valkey, peers over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import httpx
import pytest

from services.scheduler.app import create_app
from shared.contracts.scheduler import CancelReply, QueueState, SubmitTask, Submitted
from shared.domain.errors import RegistryUnavailable
from shared.domain.task import InferenceTask
from shared.domain.task_state import TaskState
from shared.registry.redis_registry import RedisTaskRegistry, connect_registry
from shared.runtime.config import Config, ConfigError
from tests.fakes.tasks import MODEL, make_task, make_tokens
from tests.fakes.valkey import ValkeyServer, running_valkey
from tests.integration.runtime.served import served
from tests.integration.scheduler.peers import Peers

TOKEN = "service-secret"
LIMIT_S = 10.0


class Scheduler:
    def __init__(self, url: str, peers: Peers, stack: AsyncExitStack) -> None:
        self.peers = peers
        self.client = httpx.AsyncClient(base_url=url, headers={"X-Butterfly-Service-Token": TOKEN})
        self._stack = stack

    async def submit(self, task: InferenceTask, *, require_capacity: bool = False) -> httpx.Response:
        body = SubmitTask(task=task, require_capacity=require_capacity).model_dump_json()
        return await self.client.post("/tasks", content=body, headers={"Content-Type": "application/json"})

    async def stop(self) -> None:
        await self.client.aclose()
        await self._stack.aclose()


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


@pytest.fixture
async def registry(valkey: ValkeyServer) -> AsyncIterator[RedisTaskRegistry]:
    registry = connect_registry(valkey.url, allow_weak_durability=False)
    yield registry
    await registry.aclose()


@pytest.fixture
async def scheduler(valkey: ValkeyServer, registry: RedisTaskRegistry) -> AsyncIterator[Scheduler]:
    peers = Peers(registry)
    stack = AsyncExitStack()
    peers_url = await stack.enter_async_context(served(peers.app()))
    config = Config.model_validate(
        {
            "redis": {"url": valkey.url},
            "security": {"service_token": TOKEN},
            "scheduling": {"preload_models": [MODEL]},
            "services": {
                "partitioner_url": peers_url,
                "coordinator_url": peers_url,
                "metrics_url": "http://127.0.0.1:9",  # nobody: events are dropped
            },
        }
    )
    url = await stack.enter_async_context(served(create_app(config)))
    scheduler = Scheduler(url, peers, stack)
    yield scheduler
    await scheduler.stop()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not await condition():
        assert time.monotonic() < limit, "the condition did not come true in time"
        await asyncio.sleep(0.01)


async def has_state(registry: RedisTaskRegistry, task: InferenceTask, state: TaskState) -> bool:
    try:
        return (await registry.record(task.task_id)).state is state
    except RegistryUnavailable:
        return False


async def test_a_submitted_task_goes_through_a_session_to_its_end(
    scheduler: Scheduler, registry: RedisTaskRegistry
) -> None:
    task = make_task()
    answer = await scheduler.submit(task)
    assert answer.status_code == 202
    assert Submitted.model_validate_json(answer.content).state is TaskState.QUEUED
    await until(lambda: has_state(registry, task, TaskState.COMPLETED))
    assert await registry.tokens(task.task_id) == make_tokens(7)
    entries = (await registry.read_streams({task.task_id: "0"}, block_s=0))[task.task_id]
    told = [entry.data["to"] if entry.kind == "state" else entry.kind for entry in entries]
    assert told == ["queued", "partitioning", "coordinating", "computing", "commit", "end"]


async def test_an_accepted_task_survives_the_death_of_the_registry(
    scheduler: Scheduler, registry: RedisTaskRegistry, valkey: ValkeyServer
) -> None:
    scheduler.peers.ready = False
    tasks = [make_task() for _ in range(10)]

    async def is_accepted(task: InferenceTask) -> bool:
        answer = await scheduler.submit(task)
        assert answer.status_code in (202, 503), answer.text  # refused is not accepted: a client asks again
        return answer.status_code == 202

    await asyncio.gather(*(until(lambda task=task: is_accepted(task)) for task in tasks))  # type: ignore[misc]
    valkey.kill()
    refused = await scheduler.submit(make_task())
    assert refused.status_code == 503
    assert refused.json()["code"] == "registry_unavailable"
    assert refused.headers["Retry-After"] == "1"
    valkey.start()
    scheduler.peers.ready = True
    for task in tasks:
        await until(lambda task=task: has_state(registry, task, TaskState.COMPLETED))  # type: ignore[misc]
    assert {wanted.task_id for wanted in scheduler.peers.opened} == {task.task_id for task in tasks}


async def test_a_coordinator_that_was_started_anew_is_asked_again_at_once(
    scheduler: Scheduler, registry: RedisTaskRegistry
) -> None:
    async def answered(code: str | None) -> bool:
        answer = await scheduler.submit(make_task(), require_capacity=True)
        return bool(answer.json().get("code") == code)

    task = make_task()  # nobody has asked for capacity yet: what was possible a moment ago would be accepted
    await scheduler.submit(task)
    await until(lambda: has_state(registry, task, TaskState.COMPLETED))
    scheduler.peers.broken = True
    await until(lambda: answered("circuit_open"))
    scheduler.peers.broken, scheduler.peers.boot = False, "second"
    await until(lambda: answered(None))


async def test_a_running_task_is_cancelled_down_to_the_coordinator(
    scheduler: Scheduler, registry: RedisTaskRegistry
) -> None:
    scheduler.peers.finishes = False
    task = make_task()
    await scheduler.submit(task)
    await until(lambda: has_state(registry, task, TaskState.COMPUTING))
    answer = await scheduler.client.post(f"/tasks/{task.task_id}/cancel")
    assert CancelReply.model_validate_json(answer.content).accepted
    assert scheduler.peers.cancelled == [task.task_id]
    state = QueueState.model_validate_json((await scheduler.client.get("/state")).content)
    assert (state.depth, state.running) == (0, 0)
    assert (await scheduler.client.post("/tasks/unknown/cancel")).json()["code"] == "task_not_found"


async def test_a_stopped_scheduler_gives_its_tasks_up_at_once(
    scheduler: Scheduler, registry: RedisTaskRegistry
) -> None:
    scheduler.peers.finishes = False
    task = make_task()
    await scheduler.submit(task)
    await until(lambda: has_state(registry, task, TaskState.COMPUTING))
    await scheduler.stop()
    mended = await registry.reconcile(limit=10, max_attempts=5, owner="other", lease_s=10, waiting={})
    assert mended.adopted == (task.task_id,)


async def test_configured_models_are_placed_and_the_queue_is_shown_as_metrics(scheduler: Scheduler) -> None:
    async def placed() -> bool:
        return bool(scheduler.peers.placed)

    await until(placed)
    assert scheduler.peers.placed[0].plan.model_id == MODEL
    text = (await scheduler.client.get("/metrics")).text
    assert 'butterfly_queue_depth{priority="0"} 0.0' in text
    assert "butterfly_tasks_running 0.0" in text


async def test_callers_without_the_service_token_are_refused(scheduler: Scheduler) -> None:
    async with httpx.AsyncClient(base_url=scheduler.client.base_url) as stranger:
        assert (await stranger.post("/attachments", json={"task_ids": []})).status_code == 401
        assert (await stranger.get("/livez")).status_code == 200
    assert (await scheduler.client.post("/attachments", json={"task_ids": ["x"]})).status_code == 200


def test_a_scheduler_without_a_registry_says_which_key_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"redis\.url"):
        create_app(Config())
