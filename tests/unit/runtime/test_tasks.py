import asyncio
import logging

import pytest

from shared.domain.errors import RegistryUnavailable
from shared.runtime.tasks import BackgroundTasks
from tests.fakes.clock import FakeClock


async def test_a_loop_that_raises_is_logged_and_goes_on_after_its_delay(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    tasks = BackgroundTasks(clock)
    rounds = 0

    async def body() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            raise RuntimeError("once")
        await clock.sleep(60)

    tasks.loop("dispatch", body, restart_delay_s=0.5)
    await clock.settle()
    assert rounds == 1
    assert [record.message for record in caplog.records] == ["background_loop_failed"]
    await clock.advance(0.5)
    assert rounds == 2
    await tasks.stop(grace_s=1)


async def test_a_loop_whose_dependency_is_away_says_so_once_per_outage(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    tasks = BackgroundTasks(clock)
    is_away = True

    async def body() -> None:
        if is_away:
            raise RegistryUnavailable("Redis cannot be reached")
        await clock.sleep(1)

    def told() -> list[tuple[str, str, bool]]:
        return [(record.message, record.levelname, record.exc_info is None) for record in caplog.records]

    line = ("background_loop_hindered", "WARNING", True)
    tasks.loop("dispatch", body)
    await clock.advance(10)
    assert told() == [line]
    is_away = False
    await clock.advance(10)
    is_away = True
    await clock.advance(10)
    assert told() == [line, line]
    await tasks.stop(grace_s=1)


async def test_a_loop_that_returns_is_called_again_without_starving_others() -> None:
    tasks = BackgroundTasks(FakeClock())
    rounds = 0

    async def body() -> None:
        nonlocal rounds
        rounds += 1

    tasks.loop("busy", body)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert rounds >= 1
    await tasks.stop(grace_s=1)
    stopped_at = rounds
    await asyncio.sleep(0)
    assert rounds == stopped_at


async def test_stop_ends_whatever_runs() -> None:
    tasks = BackgroundTasks()
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = tasks.start(work(), name="work")
    await asyncio.sleep(0)
    await tasks.stop(grace_s=1)
    assert ended.is_set()
    assert task.cancelled()


async def test_stop_gives_up_on_a_task_that_refuses_to_end(caplog: pytest.LogCaptureFixture) -> None:
    tasks = BackgroundTasks()
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = tasks.start(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    await tasks.stop(grace_s=0.01)
    assert [record.message for record in caplog.records] == ["background_task_stuck"]
    release.set()
    await task


async def test_a_started_task_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    tasks = BackgroundTasks()

    async def work() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        await tasks.start(work(), name="work")
    await asyncio.sleep(0)
    assert [record.message for record in caplog.records] == ["background_task_failed"]
