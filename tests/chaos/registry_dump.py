"""What the registry holds when a chaos run is over."""

import asyncio
import time

from shared.domain.errors import ResultExpired
from shared.domain.ids import TaskId
from shared.domain.task_state import TERMINAL
from shared.registry.base import StreamEntry, TaskRecord
from shared.registry.connection import make_clients
from shared.registry.redis_registry import RedisTaskRegistry
from tests.chaos.clients import Clients
from tests.chaos.history import TaskEnd

PAGE = 100
SETTLE_LIMIT_S = 60.0


async def dump(redis_url: str, clients: Clients) -> tuple[TaskEnd, ...]:
    """Every task there is, once all have ended or `SETTLE_LIMIT_S` are over."""
    redis = make_clients(redis_url)
    registry = RedisTaskRegistry(redis, allow_weak_durability=False)
    try:
        end_s = time.monotonic() + SETTLE_LIMIT_S
        records = await _all(registry)
        while any(record.state not in TERMINAL for record in records) and time.monotonic() < end_s:
            await asyncio.sleep(0.5)
            records = await _all(registry)
        return tuple([await _end_of(record.task.task_id, registry, clients) for record in records])
    finally:
        await redis.aclose()


async def _all(registry: RedisTaskRegistry) -> list[TaskRecord]:
    found: list[TaskRecord] = []
    cursor: str | None = None
    while True:
        page = await registry.list_tasks(owner=None, states=frozenset(), model_id=None, limit=PAGE, cursor=cursor)
        found += page.records
        cursor = page.next_cursor
        if cursor is None:
            return found


async def _end_of(task_id: TaskId, registry: RedisTaskRegistry, clients: Clients) -> TaskEnd:
    record = await registry.record(task_id)
    entries = await _stream(registry, task_id)
    try:
        tokens = await registry.tokens(task_id)
    except ResultExpired:
        tokens = ()
    return TaskEnd(
        task_id=task_id,
        seed=record.task.sampler.seed,
        prompt_ids=record.task.prompt_ids,
        max_tokens=record.task.max_tokens,
        state=record.state,
        error=f"{record.error_code}: {record.error}" if record.error_code else "",
        token_ids=tuple(token.token_id for token in tokens),
        text=await clients.result_text(task_id) if record.state in TERMINAL else "",
        commits=tuple(_commit(entry) for entry in entries if entry.kind == "commit"),
        ends=tuple(str(entry.data["state"]) for entry in entries if entry.kind == "end"),
    )


async def _stream(registry: RedisTaskRegistry, task_id: TaskId) -> list[StreamEntry]:
    entries: list[StreamEntry] = []
    after = "0"
    while found := (await registry.read_streams({task_id: after}, block_s=0)).get(task_id):
        entries += found
        after = found[-1].entry_id
    return entries


def _commit(entry: StreamEntry) -> tuple[int, tuple[int, ...]]:
    first, records = entry.data["first_index"], entry.data["records"]
    if not isinstance(first, int) or not isinstance(records, tuple):
        raise TypeError(f"no commit entry: {entry}")
    return first, tuple(record.token_id for record in records)
