import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future

import pytest

from services.worker.service.engine_thread import EngineThread


@pytest.fixture
async def thread() -> AsyncIterator[EngineThread]:
    thread = EngineThread()
    yield thread
    await asyncio.to_thread(thread.close)


async def result_of(thread: EngineThread, call: object, *, expected_s: float | None = None) -> object:
    finished: asyncio.Future[Future[object]] = asyncio.get_running_loop().create_future()
    thread.submit(call, finished.set_result, expected_s=expected_s)  # type: ignore[arg-type]
    return (await finished).result()


async def test_calls_run_one_after_the_other_in_the_order_given(thread: EngineThread) -> None:
    order: list[int] = []
    await asyncio.gather(*(result_of(thread, lambda number=number: order.append(number)) for number in range(20)))
    assert order == list(range(20))


async def test_a_long_call_runs_beside_the_event_loop(thread: EngineThread) -> None:
    assert await result_of(thread, threading.get_ident) != threading.get_ident()


async def test_a_short_call_runs_at_once_when_nothing_else_is_under_way(thread: EngineThread) -> None:
    assert await result_of(thread, threading.get_ident, expected_s=0.001) == threading.get_ident()


async def test_a_short_call_does_not_overtake_one_that_is_under_way(thread: EngineThread) -> None:
    gate, order = threading.Event(), list[str]()

    def long() -> None:
        gate.wait()
        order.append("long")

    first = asyncio.ensure_future(result_of(thread, long))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(result_of(thread, lambda: order.append("short"), expected_s=0.001))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, second)
    assert order == ["long", "short"]


@pytest.mark.parametrize("expected_s", [0.001, 1.0])
async def test_an_error_reaches_whoever_asked(thread: EngineThread, *, expected_s: float) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await result_of(thread, fail, expected_s=expected_s)
