import pytest

from shared.contracts.messages import Drain, SessionStart, SessionStop
from shared.domain.errors import ContextLengthExceeded, InvalidInput, ServerDraining, StaleEpoch, TaskNotFound
from shared.domain.ids import Epoch, TaskId
from shared.domain.task import SamplerParams
from tests.fakes.worker_parts import MemoryCluster, Order

PROMPT = (1, 2, 3)


async def test_a_session_longer_than_a_slot_is_refused() -> None:
    async with MemoryCluster("a", ctx_per_slot=64).running() as cluster:
        with pytest.raises(ContextLengthExceeded, match="holds 64"):
            await cluster.assign(Order("task", PROMPT, 5, ["a"], max_rows=65))


async def test_more_tokens_than_rows_are_refused() -> None:
    async with MemoryCluster("a").running() as cluster:
        await cluster.assign(Order("fits", PROMPT, 8, ["a"], max_rows=10))
        with pytest.raises(InvalidInput, match="max_rows"):
            await cluster.assign(Order("task", PROMPT, 9, ["a"], max_rows=10))


async def test_a_first_stage_without_a_prompt_is_refused() -> None:
    async with MemoryCluster("a").running() as cluster:
        with pytest.raises(InvalidInput, match="prompt"):
            await cluster.assign(Order("task", (), 5, ["a"]))


async def test_sampler_parameters_that_the_rule_cannot_follow_are_refused() -> None:
    async with MemoryCluster("a").running() as cluster:
        with pytest.raises(InvalidInput, match="temperature"):
            await cluster.assign(Order("task", PROMPT, 5, ["a"], sampler=SamplerParams(temperature=-1.0)))


async def test_a_draining_worker_takes_no_new_seats_and_goes_on_with_those_it_has() -> None:
    async with MemoryCluster("a").running() as cluster:
        order = Order("task", PROMPT, 5, ["a"])
        await cluster.assign(order)
        await cluster["a"].sessions.drain(Drain(reason="update"))
        with pytest.raises(ServerDraining):
            await cluster.assign(Order("other", PROMPT, 5, ["a"]))
        await cluster.start(order)
        assert len(await cluster.tokens(order)) == 5


async def test_only_the_first_stage_can_be_started() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        order = Order("task", PROMPT, 5, ["a", "b"])
        await cluster.assign(order)
        start = SessionStart(task_id=order.task_id, epoch=order.epoch)
        with pytest.raises(TaskNotFound):
            await cluster["b"].sessions.start(start)


async def test_a_start_of_an_older_epoch_is_refused() -> None:
    async with MemoryCluster("a").running() as cluster:
        await cluster.assign(Order("task", PROMPT, 5, ["a"], epoch=Epoch(4)))
        with pytest.raises(StaleEpoch):
            await cluster["a"].sessions.start(SessionStart(task_id=TaskId("task"), epoch=Epoch(3)))


async def test_stopping_a_session_never_heard_of_is_no_error() -> None:
    async with MemoryCluster("a").running() as cluster:
        stop = SessionStop(task_id=TaskId("task"), epoch=Epoch(3), reason="cancelled")
        assert (await cluster["a"].sessions.stop(stop)).ready


async def test_a_stop_of_an_older_epoch_leaves_the_newer_seat() -> None:
    async with MemoryCluster("a").running() as cluster:
        order = Order("task", PROMPT, 5, ["a"], epoch=Epoch(4))
        await cluster.assign(order)
        await cluster["a"].sessions.stop(SessionStop(task_id=order.task_id, epoch=Epoch(3), reason="late"))
        assert len(cluster["a"].seating) == 1
