import asyncio

import pytest

from shared.contracts.messages import LoadStage, SeatReady, SessionStop, StageReady
from shared.domain.errors import OutOfMemory, PeerUnavailable
from shared.domain.numerics import Profile, StageFacts
from tests.fakes.identities import COORDINATOR_URL
from tests.fakes.worker_parts import MemoryCluster, MemoryWorker, Order

PROMPT = (1, 2, 3)
# A stage of the synthetic engine holds 100 bytes of weights, and 4 slots of 512 rows of 8 bytes per layer.
KV_BYTES_PER_LAYER = 4 * 512 * 8


async def test_a_loaded_stage_is_kept_for_the_next_session() -> None:
    async with MemoryCluster("a").running() as cluster:
        await cluster.run(Order("t1", PROMPT, 3, ["a"]))
        await cluster.run(Order("t2", PROMPT, 3, ["a"]))
        assert len(cluster["a"].files.fetched) == 1


async def test_callers_that_ask_at_the_same_time_share_one_load() -> None:
    async with MemoryCluster("a").running() as cluster:
        ref = cluster.assignment(Order("t", PROMPT, 3, ["a"]), 0).stage_ref
        runners = await asyncio.gather(*(cluster["a"].stages.load(ref) for _ in range(3)))
        assert len(set(map(id, runners))) == 1
        assert len(cluster["a"].loader.engines) == 1


async def test_the_stage_unused_longest_makes_room_for_another() -> None:
    async with MemoryCluster("a", memory_bytes=200 + 12 * KV_BYTES_PER_LAYER).running() as cluster:
        for model in ("first", "second", "third"):
            await cluster.run(Order(model, PROMPT, 3, ["a"], model=model))
        assert sorted(runner.ref.model_id for runner in cluster["a"].stages.runners) == ["second", "third"]


async def test_unused_stages_of_another_cut_of_the_same_model_are_dropped() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        await cluster.run(Order("whole", PROMPT, 3, ["a"]))
        await cluster.run(Order("halves", PROMPT, 3, ["a", "b"]))
        assert [str(runner.ref.layers) for runner in cluster["a"].stages.runners] == ["0-3"]


async def test_a_stage_of_another_cut_is_dropped_when_its_last_session_ends() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        old, other = Order("whole", PROMPT, 3, ["a"]), Order("whole too", PROMPT, 3, ["a"])
        for order in (old, other):
            await cluster.assign(order)
        await cluster.run(Order("halves", PROMPT, 3, ["a", "b"]))
        assert held(cluster["a"]) == ["0-3", "0-6"]
        await stop(cluster["a"], old)
        assert held(cluster["a"]) == ["0-3", "0-6"]
        await stop(cluster["a"], other)
        assert held(cluster["a"]) == ["0-3"]


async def test_a_stage_of_another_cut_that_gets_new_sessions_stays() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        old, new = Order("whole", PROMPT, 3, ["a"]), Order("whole again", PROMPT, 3, ["a"])
        await cluster.assign(old)
        await cluster.run(Order("halves", PROMPT, 3, ["a", "b"]))
        await cluster.assign(new)
        for order in (old, new):
            await stop(cluster["a"], order)
        assert held(cluster["a"]) == ["0-3", "0-6"]


def held(worker: MemoryWorker) -> list[str]:
    return sorted(str(runner.ref.layers) for runner in worker.stages.runners)


async def stop(worker: MemoryWorker, order: Order) -> None:
    await worker.sessions.stop(SessionStop(task_id=order.task_id, epoch=order.epoch, reason="completed"))


async def test_a_stage_in_use_is_never_dropped() -> None:
    async with MemoryCluster("a", memory_bytes=200 + 7 * KV_BYTES_PER_LAYER).running() as cluster:
        await cluster.assign(Order("t1", PROMPT, 3, ["a"]))
        with pytest.raises(OutOfMemory, match="are free"):
            await cluster.assign(Order("t2", PROMPT, 3, ["a"], model="other"))


async def test_a_seat_whose_stage_must_be_loaded_first_is_told_when_it_is_ready() -> None:
    async with MemoryCluster("a").running() as cluster:
        order = Order("task", PROMPT, 3, ["a"])
        assert not (await cluster["a"].sessions.assign(cluster.assignment(order, 0), COORDINATOR_URL)).ready
        await cluster.coordinator.until(lambda: bool(cluster.coordinator.told))
        assert cluster.coordinator.told == [SeatReady(task_id=order.task_id, epoch=order.epoch, lane=0, stage=0)]
        assert (await cluster["a"].sessions.assign(cluster.assignment(order, 0), COORDINATOR_URL)).ready


async def test_a_seat_that_cannot_be_taken_is_told_with_its_reason() -> None:
    async with MemoryCluster("a").running() as cluster:
        cluster["a"].files.errors.append(PeerUnavailable("the partitioner is away"))
        order = Order("task", PROMPT, 3, ["a"])
        await cluster["a"].sessions.assign(cluster.assignment(order, 0), COORDINATOR_URL)
        await cluster.coordinator.until(lambda: bool(cluster.coordinator.told))
        report = cluster.coordinator.told[0]
        assert isinstance(report, SeatReady)
        assert (report.error_code, report.error) == ("peer_unavailable", "the partitioner is away")


async def test_a_session_that_is_stopped_while_its_stage_loads_takes_no_slot() -> None:
    async with MemoryCluster("a").running() as cluster:
        worker, order = cluster["a"], Order("task", PROMPT, 3, ["a"])
        worker.files.gate.clear()
        assignment = cluster.assignment(order, 0)
        await worker.sessions.assign(assignment, COORDINATOR_URL)
        await worker.sessions.stop(SessionStop(task_id=order.task_id, epoch=order.epoch, reason="cancelled"))
        worker.files.gate.set()
        await worker.stages.load(assignment.stage_ref)
        await asyncio.sleep(0)
        assert len(worker.seating) == 0
        assert cluster.coordinator.told == []


async def test_a_stage_held_ready_is_told_with_its_profile() -> None:
    async with MemoryCluster("a").running() as cluster:
        message = LoadStage(stage_ref=cluster.assignment(Order("t", PROMPT, 3, ["a"]), 0).stage_ref)
        assert not (await cluster["a"].sessions.load_stage(message)).ready
        await cluster.coordinator.until(lambda: bool(cluster.coordinator.told))
        report = cluster.coordinator.told[0]
        assert isinstance(report, StageReady)
        assert report.error_code is None
        assert report.facts == StageFacts("synthetic", "0-6", Profile.EXACT, None)
        assert (await cluster["a"].sessions.load_stage(message)).ready


async def test_a_stage_that_is_only_tested_takes_no_memory() -> None:
    async with MemoryCluster("a").running() as cluster:
        worker = cluster["a"]
        ref = cluster.assignment(Order("t", PROMPT, 3, ["a"]), 0).stage_ref
        assert not (await worker.sessions.load_stage(LoadStage(stage_ref=ref, holds=False))).ready
        await cluster.coordinator.until(lambda: bool(cluster.coordinator.told))
        report = cluster.coordinator.told[0]
        assert isinstance(report, StageReady)
        assert (report.holds, report.facts) == (False, StageFacts("synthetic", "0-6", Profile.EXACT, None))
        assert list(worker.stages.runners) == []
        assert worker.loader.engines[0].is_closed


async def test_stages_in_use_do_not_give_way_to_one_that_is_only_tested() -> None:
    async with MemoryCluster("a", memory_bytes=150 + 3 * KV_BYTES_PER_LAYER).running() as cluster:
        stages = cluster["a"].stages
        first, second = (cluster.assignment(Order("t", PROMPT, 3, ["a", "a"]), stage).stage_ref for stage in range(2))
        held = await stages.load(first)
        with pytest.raises(OutOfMemory):
            await stages.prepare(second)
        assert list(stages.runners) == [held]
