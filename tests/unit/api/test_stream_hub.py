import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from services.api.stores.stream_hub import MAX_PENDING, StreamHub
from shared.domain.errors import RegistryUnavailable, ServerDraining
from shared.domain.ids import TaskId
from shared.registry.base import StreamEntry
from shared.runtime.tasks import BackgroundTasks
from tests.fakes.catalogue import tokens_of
from tests.fakes.clock import FakeClock
from tests.fakes.scheduler import Conductor
from tests.fakes.task_registry import MemoryTaskRegistry
from tests.fakes.tasks import make_task


class CountingRegistry(MemoryTaskRegistry):
    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0
        self.is_away = False

    async def read_streams(
        self, after: Mapping[TaskId, str], *, block_s: float
    ) -> Mapping[TaskId, tuple[StreamEntry, ...]]:
        self.num_reads += 1
        if self.is_away:
            raise RegistryUnavailable("away")
        return await super().read_streams(after, block_s=block_s)


class Bench:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.registry = CountingRegistry()
        self.conductor = Conductor(self.registry)
        self.hub = StreamHub(self.registry)

    async def task(self) -> TaskId:
        task = make_task()
        await self.registry.submit(
            task, idempotency_key=None, payload_hash="", attached=False, max_queue_size=99, max_queued_per_owner=99
        )
        return task.task_id


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    tasks = BackgroundTasks(bench.clock)
    tasks.loop("streams", bench.hub.round)
    yield bench
    await tasks.stop(1.0)


async def test_every_reader_gets_its_own_task_from_the_beginning(bench: Bench) -> None:
    first, second = await bench.task(), await bench.task()
    with bench.hub.follow(first, patient=True) as one, bench.hub.follow(second, patient=True) as two:
        assert (await one.next()).data["to"] == "queued"
        assert (await two.next()).data["to"] == "queued"
        await bench.conductor.start(second)
        assert (await two.next()).data["to"] == "partitioning"


async def test_a_stream_opened_while_others_are_silent_is_read_at_once(bench: Bench) -> None:
    silent, late = await bench.task(), await bench.task()
    with bench.hub.follow(silent, patient=True) as waiting:
        await waiting.next()
        await bench.clock.settle()
        with bench.hub.follow(late, patient=True) as entries:
            async with asyncio.timeout(1):  # far below the 5 s that a read may block
                await entries.next()


async def test_two_readers_of_one_task_both_get_everything(bench: Bench) -> None:
    task_id = await bench.task()
    await bench.conductor.start(task_id)
    with bench.hub.follow(task_id, patient=True) as early:
        seen = [(await early.next()).entry_id for _ in range(4)]
        with bench.hub.follow(task_id, patient=True) as late:
            assert [(await late.next()).entry_id for _ in range(4)] == seen
            await bench.conductor.commit(task_id, tokens_of("x"))
            assert (await early.next()).entry_id == (await late.next()).entry_id


async def test_a_reader_that_lags_holds_a_bounded_number_and_loses_nothing(bench: Bench) -> None:
    task_id = await bench.task()
    await bench.conductor.start(task_id)
    for _ in range(2 * MAX_PENDING):
        await bench.conductor.commit(task_id, tokens_of("x"))
    await bench.conductor.finish(task_id)
    with bench.hub.follow(task_id, patient=True) as entries:
        await bench.clock.settle()
        kinds = []
        while "end" not in kinds:
            kinds.append((await entries.next()).kind)
    assert kinds.count("commit") == 2 * MAX_PENDING


async def test_nothing_is_read_while_nobody_follows(bench: Bench) -> None:
    await bench.clock.settle()
    assert bench.registry.num_reads == 0
    with bench.hub.follow(await bench.task(), patient=True) as entries:
        await entries.next()
    assert bench.hub.num_followed == 0


async def test_an_outage_of_the_registry_only_delays(bench: Bench) -> None:
    bench.registry.is_away = True
    with bench.hub.follow(await bench.task(), patient=True) as entries:
        await bench.clock.settle()
        assert bench.registry.num_reads == 1
        bench.registry.is_away = False
        await bench.clock.advance(0.5)
        assert (await entries.next()).kind == "state"


async def test_streams_that_are_not_patient_end_first(bench: Bench) -> None:
    task_id = await bench.task()
    with bench.hub.follow(task_id, patient=False) as events, bench.hub.follow(task_id, patient=True) as answer:
        await events.next()
        await answer.next()
        bench.hub.fail(ServerDraining("stop"), patient=False)
        with pytest.raises(ServerDraining):
            await events.next()
        await bench.conductor.start(task_id)
        assert (await answer.next()).kind == "state"
