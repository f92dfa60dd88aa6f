"""The registry does not answer for a while: nothing is lost, nothing overtakes."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from shared.contracts.coordinator import OpenSession
from shared.domain.errors import RegistryUnavailable
from shared.domain.ids import Attempt, Epoch, TaskId
from shared.domain.task import TokenRecord
from shared.domain.task_state import TaskState
from shared.registry.base import Commit, Finish, TaskRecord
from tests.fakes.clock import FakeClock
from tests.fakes.partitioner import even_plan
from tests.fakes.task_registry import MemoryTaskRegistry
from tests.fakes.tasks import make_task
from tests.unit.coordinator.harness import NODES, Coordinator


class UnsteadyRegistry(MemoryTaskRegistry):
    """Writes of answers fail while `is_away`."""

    is_away = False

    def __init__(self) -> None:
        super().__init__()
        self.opening = asyncio.Event()
        self.opening.set()
        """Cleared: sessions wait before they are opened, and then fail while `is_away`."""

    async def open_session(
        self, task_id: TaskId, *, attempt: Attempt | None, plan_id: str, coordinator: str, lease_s: float
    ) -> tuple[Epoch, TaskRecord, tuple[TokenRecord, ...]]:
        await self.opening.wait()
        self._check()
        return await super().open_session(
            task_id, attempt=attempt, plan_id=plan_id, coordinator=coordinator, lease_s=lease_s
        )

    async def commit(self, commits: Sequence[Commit]) -> tuple[int | None, ...]:
        self._check()
        return await super().commit(commits)

    async def finish(self, task_id: TaskId, *, epoch: Epoch, finish: Finish, last: Commit | None) -> bool:
        self._check()
        return await super().finish(task_id, epoch=epoch, finish=finish, last=last)

    def _check(self) -> None:
        if self.is_away:
            raise RegistryUnavailable("the task registry does not answer")


@pytest.fixture
async def registry() -> UnsteadyRegistry:
    return UnsteadyRegistry()


@pytest.fixture
async def coordinator(registry: UnsteadyRegistry) -> AsyncIterator[Coordinator]:
    clock = FakeClock()
    registry._now = clock.wall_s
    running = await Coordinator(clock=clock, registry=registry).start()
    yield running
    await running.stop()


async def test_drafts_wait_and_are_appended_in_order(coordinator: Coordinator, registry: UnsteadyRegistry) -> None:
    task = make_task()
    await coordinator.open(task)
    await coordinator.draft(task, 10)
    registry.is_away = True
    await coordinator.draft(task, 11)
    await coordinator.advance(1)
    await coordinator.draft(task, 12)
    registry.is_away = False
    await coordinator.advance(1)
    assert await coordinator.token_ids(task) == [10, 11, 12]


async def test_the_end_of_an_answer_waits_too(coordinator: Coordinator, registry: UnsteadyRegistry) -> None:
    task = make_task(max_tokens=2)
    await coordinator.open(task)
    registry.is_away = True
    await coordinator.draft(task, 10, 11)
    await coordinator.advance(3)
    assert await coordinator.state(task) is TaskState.COMPUTING
    registry.is_away = False
    await coordinator.advance(1)
    assert await coordinator.state(task) is TaskState.COMPLETED
    assert await coordinator.token_ids(task) == [10, 11]
    assert not coordinator.has_session(task)


async def test_a_deadline_that_passes_meanwhile_frees_the_workers(
    coordinator: Coordinator, registry: UnsteadyRegistry
) -> None:
    task = make_task(max_tokens=2, deadline_s=5)
    await coordinator.open(task)
    registry.is_away = True
    await coordinator.draft(task, 10, 11)
    await coordinator.advance(6)
    assert not coordinator.has_session(task)
    assert coordinator.workers.holding(task.task_id) == []


async def test_a_second_delivery_of_an_opening_promises_no_more_than_the_first_achieves(
    coordinator: Coordinator, registry: UnsteadyRegistry
) -> None:
    task, plan = make_task(), even_plan(NODES)
    wanted = OpenSession(task_id=task.task_id, attempt=await coordinator.coordinate(task, plan), plan=plan)
    for is_away in (True, False):
        registry.opening.clear()
        deliveries = [asyncio.create_task(coordinator.sessions.open(wanted)) for _ in range(2)]
        await coordinator.settle()
        assert not any(delivery.done() for delivery in deliveries)
        registry.is_away = is_away
        registry.opening.set()
        outcomes = await asyncio.gather(*deliveries, return_exceptions=True)
        assert [isinstance(outcome, RegistryUnavailable) for outcome in outcomes] == [is_away, is_away]
    assert coordinator.session(task).epoch == 1
