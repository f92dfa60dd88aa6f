"""What every store of receipts promises."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from shared.domain.errors import ResultExpired, StaleEpoch, TaskNotFound
from shared.domain.ids import Attempt, Epoch, TaskId
from shared.domain.numerics import Profile, StageFacts
from shared.domain.plan import LayerRange
from shared.domain.task import InferenceTask
from shared.domain.task_state import TaskEvent
from shared.registry.base import TaskRegistry
from shared.registry.receipts import ReceiptStore
from shared.registry.redis_receipts import RedisReceiptStore
from shared.registry.redis_registry import connect_registry
from tests.fakes.bundles import HonestRun
from tests.fakes.receipts import MemoryReceiptStore
from tests.fakes.task_registry import MemoryTaskRegistry
from tests.fakes.tasks import make_task
from tests.fakes.valkey import ValkeyServer

LIMIT_S = 5.0


@dataclass(frozen=True)
class Stores:
    registry: TaskRegistry
    receipts: ReceiptStore


@pytest.fixture(params=["memory", "redis"])
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    if request.param == "memory":
        memory = MemoryTaskRegistry()
        yield Stores(memory, MemoryReceiptStore(memory))
        return
    server: ValkeyServer = request.getfixturevalue("valkey")
    server.empty()
    registry = connect_registry(server.url, allow_weak_durability=False)
    yield Stores(registry, RedisReceiptStore(registry.clients))
    await registry.aclose()


async def running_task(registry: TaskRegistry, task: InferenceTask | None = None) -> TaskId:
    """A task with a session, at epoch 1."""
    task = task or make_task()
    await registry.submit(
        task, idempotency_key=None, payload_hash="", attached=False, max_queue_size=9, max_queued_per_owner=9
    )
    (claim,) = await registry.claim(task.group, 1, owner="scheduler", lease_s=5.0, plan_id="plan")
    await registry.open_session(
        task.task_id, attempt=claim.attempt, plan_id="plan", coordinator="coordinator-1", lease_s=3.0
    )
    return task.task_id


async def has_expired(receipts: ReceiptStore, task_id: TaskId) -> bool:
    try:
        await receipts.entries(task_id)
    except ResultExpired:
        return True
    return False


async def test_entries_come_back_as_they_were_given_in_the_order_of_windows(stores: Stores) -> None:
    task_id = await running_task(stores.registry)
    given = HonestRun().entries()
    for entry in reversed(given):
        await stores.receipts.append(task_id, entry)
    assert await stores.receipts.entries(task_id) == given


async def test_a_window_given_twice_stays_as_it_was(stores: Stores) -> None:
    task_id = await running_task(stores.registry)
    (entry, *_) = HonestRun().entries()
    await stores.receipts.append(task_id, entry)
    await stores.receipts.append(task_id, replace(entry, num_tokens=entry.num_tokens + 1))
    assert await stores.receipts.entries(task_id) == (entry,)


async def test_a_window_of_a_later_epoch_stands_beside_that_of_the_earlier(stores: Stores) -> None:
    task_id = await running_task(stores.registry)
    (entry, *_) = HonestRun().entries()
    await stores.receipts.append(task_id, entry)
    await stores.registry.open_session(task_id, attempt=None, plan_id="other", coordinator="coordinator-1", lease_s=3.0)
    again = replace(entry, epoch=Epoch(2))
    await stores.receipts.append(task_id, again)
    assert await stores.receipts.entries(task_id) == (entry, again)


async def test_an_entry_of_a_stale_epoch_is_refused(stores: Stores) -> None:
    task_id = await running_task(stores.registry)
    await stores.registry.open_session(task_id, attempt=None, plan_id="other", coordinator="coordinator-1", lease_s=3.0)
    with pytest.raises(StaleEpoch):
        await stores.receipts.append(task_id, HonestRun().entries()[0])
    assert await stores.receipts.entries(task_id) == ()


async def test_a_task_without_receipts_has_none(stores: Stores) -> None:
    assert await stores.receipts.entries(await running_task(stores.registry)) == ()


async def test_an_unknown_task_is_not_found(stores: Stores) -> None:
    with pytest.raises(TaskNotFound):
        await stores.receipts.entries(TaskId("unknown"))
    with pytest.raises(TaskNotFound):
        await stores.receipts.append(TaskId("unknown"), HonestRun().entries()[0])


async def test_receipts_go_with_the_result_those_that_came_after_the_end_too(stores: Stores) -> None:
    first, second = HonestRun().entries()[:2]
    task_id = await running_task(stores.registry, make_task(result_ttl_s=1))
    await stores.receipts.append(task_id, first)
    await stores.registry.advance(task_id, TaskEvent.FAIL, attempt=Attempt(1), error_code="generation_failed")
    await stores.receipts.append(task_id, second)
    assert len(await stores.receipts.entries(task_id)) == 2
    until_s = time.monotonic() + LIMIT_S
    while not await has_expired(stores.receipts, task_id):
        assert time.monotonic() < until_s
        await asyncio.sleep(0.02)


async def test_a_tail_audit_stands_beside_the_entries_and_the_first_one_stays(stores: Stores) -> None:
    run = HonestRun()
    task_id = await running_task(stores.registry)
    assert await stores.receipts.tail_audit(task_id) is None
    for entry in run.entries():
        await stores.receipts.append(task_id, entry)
    given = replace(run.tail(), epoch=Epoch(1))
    await stores.receipts.keep_tail_audit(task_id, given)
    await stores.receipts.keep_tail_audit(task_id, replace(given, receipts=()))
    assert await stores.receipts.tail_audit(task_id) == given
    assert await stores.receipts.entries(task_id) == run.entries()


async def test_a_tail_audit_of_another_epoch_is_refused(stores: Stores) -> None:
    task_id = await running_task(stores.registry)
    with pytest.raises(StaleEpoch):
        await stores.receipts.keep_tail_audit(task_id, HonestRun().tail())
    with pytest.raises(TaskNotFound):
        await stores.receipts.keep_tail_audit(TaskId("unknown"), HonestRun().tail())
    assert await stores.receipts.tail_audit(task_id) is None


async def test_redis_keeps_receipts_no_longer_than_the_result(valkey: ValkeyServer) -> None:
    valkey.empty()
    registry = connect_registry(valkey.url, allow_weak_durability=False)
    receipts = RedisReceiptStore(registry.clients)
    task_id = await running_task(registry)
    await registry.advance(task_id, TaskEvent.FAIL, attempt=Attempt(1), error_code="generation_failed")
    await receipts.append(task_id, HonestRun().entries()[0])
    expires = [
        int(await registry.clients.commands.pexpiretime("{bf}:" + kind + task_id)) for kind in ("receipts:", "events:")
    ]
    assert expires[0] == expires[1] > 0
    await registry.aclose()


async def test_what_the_self_tests_found_is_kept_with_an_entry(stores: Stores) -> None:
    task_id = await running_task(stores.registry)
    facts = ((LayerRange(0, 2), StageFacts("avx", "ab", Profile.DECODE_EXACT, 3)),)
    entry = replace(HonestRun(task_id=task_id).entries()[0], facts=facts)
    await stores.receipts.append(task_id, entry)
    assert await stores.receipts.entries(task_id) == (entry,)
