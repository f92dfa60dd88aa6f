"""Steps of the tests of task registries: the calls with their usual arguments, and a task brought to a state."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from shared.domain.ids import Epoch, TaskId
from shared.domain.task import FinishReason, InferenceTask, TaskGroup
from shared.domain.task_state import TRANSITIONS, TaskEvent, TaskState
from shared.registry.base import Claim, Finish, Reconciled, StreamEntry, TaskRegistry
from tests.fakes.tasks import GROUP, make_task

LIMIT_S = 5.0


async def submit(
    registry: TaskRegistry,
    task: InferenceTask,
    *,
    key: str | None = None,
    attached: bool = False,
    rank: int | None = None,
) -> TaskId:
    submission = await registry.submit(
        task,
        idempotency_key=key,
        payload_hash="hash",
        attached=attached,
        max_queue_size=1_000,
        max_queued_per_owner=1_000,
        rank=rank,
    )
    return submission.task_id


async def claim(
    registry: TaskRegistry, count: int = 1, *, lease_s: float = 10.0, plan: str | None = None
) -> tuple[Claim, ...]:
    return await registry.claim(GROUP, count, owner="replica-1", lease_s=lease_s, plan_id=plan)


async def computing(registry: TaskRegistry, task: InferenceTask, *, lease_s: float = 10.0) -> tuple[Claim, Epoch]:
    """Submit `task` into an empty queue and bring it to Computing."""
    await submit(registry, task)
    (claimed,) = await claim(registry, lease_s=lease_s, plan="plan-1")
    epoch, _, _ = await registry.open_session(
        claimed.task_id, attempt=claimed.attempt, plan_id="plan-1", coordinator="coordinator-1", lease_s=3.0
    )
    await registry.advance(claimed.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=epoch)
    return claimed, epoch


async def reconcile(
    registry: TaskRegistry, *, max_attempts: int = 5, waiting: dict[TaskGroup, str] | None = None
) -> Reconciled:
    return await registry.reconcile(
        limit=100, max_attempts=max_attempts, owner="replica-2", lease_s=10.0, waiting=waiting or {}
    )


async def stream(registry: TaskRegistry, task_id: TaskId, after: str = "0") -> tuple[StreamEntry, ...]:
    return (await registry.read_streams({task_id: after}, block_s=0)).get(task_id, ())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    limit = time.monotonic() + LIMIT_S
    while not await condition():
        assert time.monotonic() < limit, "the condition did not come true in time"
        await asyncio.sleep(0.005)


async def reconciled(registry: TaskRegistry, *, max_attempts: int = 5) -> Reconciled:
    """The first pass that mends anything."""
    found = Reconciled()

    async def mended() -> bool:
        nonlocal found
        found = await reconcile(registry, max_attempts=max_attempts)
        return found != Reconciled()

    await until(mended)
    return found


def answer(reason: FinishReason, num_tokens: int) -> Finish:
    return Finish(finish_reason=reason, num_tokens=num_tokens)


async def in_state(registry: TaskRegistry, state: TaskState) -> TaskId:
    """A task brought to `state` by events alone."""
    task = make_task()
    await submit(registry, task)
    paths: dict[TaskState, tuple[TaskEvent, ...]] = {TaskState.QUEUED: ()}
    frontier = [TaskState.QUEUED]
    while frontier:
        before = frontier.pop(0)
        for (origin, event), after in TRANSITIONS.items():
            if origin is before and after not in paths:
                paths[after] = (*paths[before], event)
                frontier.append(after)
    for event in paths[state]:
        await registry.advance(task.task_id, event)
    return task.task_id
