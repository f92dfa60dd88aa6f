"""What every task registry promises to readers: event streams, lists, readiness."""

import asyncio

import pytest

from shared.domain.errors import InvalidCursor
from shared.domain.ids import ModelId, TaskId
from shared.domain.task_state import TaskState
from shared.registry.base import TaskRegistry
from tests.contract.registry_steps import LIMIT_S, stream, submit
from tests.fakes.tasks import MODEL, make_task


async def test_streams_of_many_tasks_are_read_at_once_and_resumed(registry: TaskRegistry) -> None:
    first, second = make_task(), make_task()
    await submit(registry, first)
    await submit(registry, second)
    found = await registry.read_streams({first.task_id: "0", second.task_id: "not an id"}, block_s=0)
    assert set(found) == {first.task_id, second.task_id}
    seen = {task_id: entries[-1].entry_id for task_id, entries in found.items()}
    assert await registry.read_streams(seen, block_s=0) == {}
    reading = asyncio.ensure_future(registry.read_streams(seen, block_s=LIMIT_S))
    await registry.cancel(second.task_id)
    assert [entry.kind for entry in (await reading)[second.task_id]] == ["end"]


async def test_a_blocking_read_ends_empty_when_nothing_comes(registry: TaskRegistry) -> None:
    task = make_task()
    await submit(registry, task)
    (entry,) = await stream(registry, task.task_id)
    assert await registry.read_streams({task.task_id: entry.entry_id}, block_s=0.02) == {}
    assert await registry.read_streams({}, block_s=1) == {}


async def test_tasks_are_listed_newest_first_page_by_page(registry: TaskRegistry) -> None:
    tasks = [make_task(owner="anna" if number % 2 else "bert") for number in range(7)]
    for task in tasks:
        await submit(registry, task)

    async def listed(owner: str | None, limit: int) -> list[TaskId]:
        found, cursor = [], None
        while True:
            page = await registry.list_tasks(owner=owner, states=frozenset(), model_id=None, limit=limit, cursor=cursor)
            assert len(page.records) <= limit
            found += [record.task.task_id for record in page.records]
            cursor = page.next_cursor
            if cursor is None:
                return found

    newest_first = [task.task_id for task in reversed(tasks)]
    assert await listed(None, 3) == newest_first
    assert await listed(None, 7) == newest_first
    assert await listed("anna", 2) == newest_first[1::2]
    assert await listed("nobody", 2) == []


async def test_tasks_are_listed_by_state_and_model(registry: TaskRegistry) -> None:
    foreign, queued, cancelled = make_task(owner="bert"), make_task(), make_task()
    other = make_task(model_id=ModelId("other"))
    for task in (foreign, queued, cancelled, other):
        await submit(registry, task)
    await registry.cancel(cancelled.task_id)
    states = frozenset({TaskState.QUEUED, TaskState.COMPUTING})
    page = await registry.list_tasks(owner=None, states=states, model_id=MODEL, limit=1, cursor=None)
    assert [record.task.task_id for record in page.records] == [queued.task_id]
    assert page.records[0].task.prompt_ids == ()
    page = await registry.list_tasks(owner="bert", states=states, model_id=None, limit=9, cursor=None)
    assert [record.task.task_id for record in page.records] == [foreign.task_id]
    for cursor in ("", "%%", "bm90IG91cnM", "ünd"):
        with pytest.raises(InvalidCursor):
            await registry.list_tasks(owner=None, states=frozenset(), model_id=None, limit=5, cursor=cursor)


async def test_a_durable_registry_is_ready(registry: TaskRegistry) -> None:
    await registry.ping()
    await registry.ping()
