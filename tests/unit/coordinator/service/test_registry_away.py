"""The registry does not answer for a while: nothing is lost, nothing overtakes."""

from collections.abc import AsyncIterator, Sequence

import pytest

from shared.domain.errors import RegistryUnavailable
from shared.domain.ids import Epoch, TaskId
from shared.domain.task_state import TaskState
from shared.registry.base import Commit, Finish
from tests.fakes.clock import FakeClock
from tests.fakes.task_registry import MemoryTaskRegistry
from tests.fakes.tasks import make_task
from tests.unit.coordinator.harness import Coordinator


class UnsteadyRegistry(MemoryTaskRegistry):
    """Writes of answers fail while `is_away`."""

    is_away = False

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
