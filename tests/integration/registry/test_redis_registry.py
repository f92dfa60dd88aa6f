"""What only the Redis registry promises: durability, and plain words when the server is away or not to be trusted."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis import Redis

from shared.domain.errors import RegistryUnavailable, RegistryUntrusted
from shared.domain.ids import TaskId
from shared.domain.task import FinishReason
from shared.domain.task_state import TaskEvent
from shared.registry import connection
from shared.registry.base import Commit, Finish
from shared.registry.redis_registry import RedisTaskRegistry, connect_registry
from tests.fakes.tasks import GROUP, MODEL, make_task, make_tokens
from tests.fakes.valkey import ValkeyServer, running_valkey


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


@pytest.fixture
async def registry(valkey: ValkeyServer) -> AsyncIterator[RedisTaskRegistry]:
    registry = connect_registry(valkey.url, allow_weak_durability=False)
    yield registry
    await registry.aclose()


async def submit(registry: RedisTaskRegistry, **changes: object) -> TaskId:
    task = make_task(**changes)
    await registry.submit(
        task, idempotency_key=None, payload_hash="", attached=False, max_queue_size=100, max_queued_per_owner=100
    )
    return task.task_id


def blocked_clients(valkey: ValkeyServer) -> int:
    with Redis(port=valkey.port) as client:
        return int(client.info("clients")["blocked_clients"])


def keys_of(valkey: ValkeyServer) -> list[object]:
    with Redis(port=valkey.port) as client:
        return list(client.keys("*"))


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(
    valkey: ValkeyServer, registry: RedisTaskRegistry
) -> None:
    queued = [await submit(registry) for _ in range(20)]
    (claimed,) = await registry.claim(GROUP, 1, owner="replica-1", lease_s=10, plan_id="plan-1")
    epoch, _, _ = await registry.open_session(
        claimed.task_id, attempt=claimed.attempt, plan_id="plan-1", coordinator="coordinator-1", lease_s=3.0
    )
    await registry.advance(claimed.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=epoch)
    await registry.commit([Commit(claimed.task_id, epoch, 0, make_tokens(1, 2))])

    valkey.kill()
    with pytest.raises(RegistryUnavailable) as away:
        await registry.queue()
    assert away.value.retry_after_s == 1.0
    valkey.start()

    assert (await registry.queue()).depth == 19
    assert await registry.tokens(claimed.task_id) == make_tokens(1, 2)
    assert await registry.commit([Commit(claimed.task_id, epoch, 2, make_tokens(3))]) == (3,)  # scripts are loaded anew
    assert await registry.finish(claimed.task_id, epoch=epoch, finish=Finish(FinishReason.STOP, 3), last=None)
    assert [each.task_id for each in await registry.claim(GROUP, 32, owner="r", lease_s=1)] == queued[1:]
    await registry.ping()


async def test_a_server_that_may_forget_is_not_used(valkey: ValkeyServer, registry: RedisTaskRegistry) -> None:
    with Redis(port=valkey.port) as client:
        client.config_set("appendfsync", "everysec")
    with pytest.raises(RegistryUntrusted, match="appendfsync always"):
        await registry.ping()
    with Redis(port=valkey.port) as client:
        client.config_set("appendfsync", "always")
    await registry.ping()


async def test_a_server_that_was_set_to_forget_later_is_not_used_any_more(
    valkey: ValkeyServer, registry: RedisTaskRegistry
) -> None:
    await registry.ping()
    with Redis(port=valkey.port) as client:
        client.config_set("appendonly", "no")
    with pytest.raises(RegistryUntrusted, match="appendonly yes"):
        await registry.ping()


async def test_who_accepts_the_loss_is_warned_once_of_what_is_set_how(
    valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    with Redis(port=valkey.port) as client:
        client.config_set("appendfsync", "everysec")
    lenient = connect_registry(valkey.url, allow_weak_durability=True)
    await lenient.ping()
    await lenient.ping()
    await lenient.aclose()
    (warning,) = (record for record in caplog.records if record.message == "registry_may_forget")
    assert vars(warning)["set"] == ["appendfsync always"]


async def test_a_server_that_was_emptied_takes_nothing_more_from_this_process(
    valkey: ValkeyServer, registry: RedisTaskRegistry
) -> None:
    await registry.ping()
    await registry.ping()
    valkey.empty()
    with pytest.raises(RegistryUntrusted, match="lost data"):
        await registry.ping()
    for call in (submit(registry), registry.groups(), registry.wait_for_work(5)):
        with pytest.raises(RegistryUntrusted, match="lost data"):
            await call
    assert keys_of(valkey) == []


async def test_not_one_write_goes_to_a_server_that_came_back_without_its_data(
    valkey: ValkeyServer, registry: RedisTaskRegistry
) -> None:
    await registry.ping()
    await submit(registry)
    valkey.kill()
    valkey.lose_data()
    valkey.start()
    with pytest.raises(RegistryUntrusted, match="lost data"):
        await submit(registry)
    assert keys_of(valkey) == []


async def test_whoever_starts_after_a_loss_takes_what_is_there(valkey: ValkeyServer) -> None:
    valkey.empty()
    registry = connect_registry(valkey.url, allow_weak_durability=False)
    await registry.ping()
    await submit(registry)
    await registry.ping()
    await registry.aclose()


async def test_restarts_under_load_lose_nothing_and_double_nothing(
    valkey: ValkeyServer, registry: RedisTaskRegistry
) -> None:
    await registry.ping()
    stop = asyncio.Event()
    acknowledged: list[TaskId] = []
    refused = 0

    async def load() -> None:
        """Each submission is repeated until it is acknowledged, as a client with an idempotency key would."""
        nonlocal refused
        while not stop.is_set():
            task = make_task()
            while True:
                try:
                    await registry.submit(
                        task,
                        idempotency_key=task.task_id,
                        payload_hash="",
                        attached=False,
                        max_queue_size=100_000,
                        max_queued_per_owner=100_000,
                    )
                    break
                except RegistryUnavailable:
                    refused += 1
                    await asyncio.sleep(0.01)
            acknowledged.append(task.task_id)

    async def restart() -> None:
        for end in (valkey.kill, valkey.stop, valkey.kill):
            before = len(acknowledged)
            while len(acknowledged) < before + 20:  # noqa: ASYNC110  progress is the condition
                await asyncio.sleep(0.005)
            await asyncio.to_thread(end)
            await asyncio.sleep(0.2)  # long enough away for callers to hear of it
            await asyncio.to_thread(valkey.start)
        stop.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(load())
        group.create_task(restart())

    assert refused > 0
    assert (await registry.queue()).depth == len(acknowledged) == len(set(acknowledged))
    claimed: list[TaskId] = []
    while some := await registry.claim(GROUP, 32, owner="replica-1", lease_s=60):
        claimed += [claim.task_id for claim in some]
    assert sorted(claimed) == sorted(acknowledged)
    await registry.ping()


async def test_waiting_readers_notice_that_the_server_went_away(
    valkey: ValkeyServer, registry: RedisTaskRegistry
) -> None:
    task_id = await submit(registry)
    (entry,) = (await registry.read_streams({task_id: "0"}, block_s=1))[task_id]
    reading = asyncio.ensure_future(registry.read_streams({task_id: entry.entry_id}, block_s=30))
    assert await registry.wait_for_work(30)
    waiting = asyncio.ensure_future(registry.wait_for_work(30))
    while blocked_clients(valkey) < 2:  # noqa: ASYNC110  only the server knows
        await asyncio.sleep(0.005)
    valkey.kill()
    for call in (reading, waiting):
        with pytest.raises(RegistryUnavailable):
            await call


async def test_queue_entries_that_were_lost_are_made_again(valkey: ValkeyServer, registry: RedisTaskRegistry) -> None:
    task_ids = [await submit(registry, priority=priority) for priority in (0, 9, 3)]
    with Redis(port=valkey.port) as client:
        client.delete("{bf}:groups", "{bf}:queued", f"{{bf}}:queue:{MODEL}")
    assert await registry.claim(GROUP, 3, owner="r", lease_s=1) == ()
    mended = await registry.reconcile(limit=100, max_attempts=5, owner="r", lease_s=1, waiting={})
    assert set(mended.requeued) == set(task_ids)
    claims = await registry.claim(GROUP, 3, owner="r", lease_s=10)
    assert [each.task_id for each in claims] == [task_ids[1], task_ids[2], task_ids[0]]
    with Redis(port=valkey.port) as client:
        client.delete("{bf}:leases")
    for _ in range(2):
        mended = await registry.reconcile(limit=100, max_attempts=5, owner="r", lease_s=1, waiting={})
    assert set(mended.requeued) == set(task_ids)


async def test_records_leave_the_index_when_they_expire(valkey: ValkeyServer, registry: RedisTaskRegistry) -> None:
    task_id = await submit(registry)
    await registry.cancel(task_id)
    with Redis(port=valkey.port) as client:
        assert 7 * 86_400 < client.ttl(f"{{bf}}:task:{task_id}") <= 8 * 86_400
        client.delete(f"{{bf}}:task:{task_id}")
        client.zadd("{bf}:expiring", {f"{task_id} anna": 1})
    page = await registry.list_tasks(owner="anna", states=frozenset(), model_id=None, limit=5, cursor=None)
    assert page.records == ()
    await registry.reconcile(limit=100, max_attempts=5, owner="r", lease_s=1, waiting={})
    with Redis(port=valkey.port) as client:
        left = [name for name in ("tasks", "tasks:anna", "expiring", "unfinished") if client.exists(f"{{bf}}:{name}")]
    assert left == []


async def test_every_key_carries_the_same_tag(valkey: ValkeyServer, registry: RedisTaskRegistry) -> None:
    await submit(registry)
    await registry.claim(GROUP, 1, owner="r", lease_s=10, plan_id="plan-1")
    await registry.ping()
    with Redis(port=valkey.port) as client:
        assert all(key.startswith(b"{bf}:") for key in client.scan_iter())


async def test_a_server_that_fell_silent_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BLOCKING_TIMEOUT_S", 0.05)

    connections: set[asyncio.Task[None] | None] = set()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with silent:
        port = silent.sockets[0].getsockname()[1]
        registry = connect_registry(f"redis://127.0.0.1:{port}", allow_weak_durability=True)
        with pytest.raises(RegistryUnavailable):
            await registry.wait_for_work(0.01)
        await registry.aclose()
        await asyncio.wait([each for each in connections if each is not None])
