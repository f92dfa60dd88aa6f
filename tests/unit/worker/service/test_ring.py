"""Rings of real services around synthetic engines: the tokens must be the whole model's."""

import asyncio
import threading

import pytest

from shared.contracts.frame import Frame, FrameKind, Row
from shared.contracts.messages import LinkFault, SessionFault, SessionStop
from shared.domain.errors import EngineFault, NoCapacity, NoSlotSpace, ProtocolViolation, StaleEpoch
from shared.domain.hidden import HiddenRows
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.task import SamplerParams
from shared.events.catalogue import StageLoaded, StepTimed
from tests.fakes.engine import SyntheticModel
from tests.fakes.worker_parts import MemoryCluster, Order

MODEL = SyntheticModel(num_layers=6)
PROMPT = tuple(range(10))
NODES = ["a", "b", "c", "d", "e"]


def prompt_of(number: int, length: int) -> tuple[int, ...]:
    return tuple((7 * number + 3 * place) % 64 for place in range(length))


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
async def test_a_ring_gives_the_tokens_of_the_whole_model(num_stages: int) -> None:
    nodes = NODES[:num_stages]
    async with MemoryCluster(*nodes).running() as cluster:
        order = Order("task", prompt_of(1, 150), 20, nodes)
        assert await cluster.run(order) == MODEL.generate(order.prompt_ids, 20)


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("batches_in_flight", [1, 3])
async def test_sequences_do_not_change_each_other(num_stages: int, batches_in_flight: int) -> None:
    nodes = NODES[:num_stages]
    async with MemoryCluster(*nodes).running() as cluster:
        orders = [
            Order(f"t{number}", prompt_of(number, 1 + 40 * number), 12, nodes, batches_in_flight=batches_in_flight)
            for number in range(4)
        ]
        found = await asyncio.gather(*(cluster.run(order) for order in orders))
    assert found == [MODEL.generate(order.prompt_ids, 12) for order in orders]


async def test_sampled_tokens_follow_the_seed() -> None:
    sampler = SamplerParams(temperature=1.0, seed=5, repetition_penalty=1.2, presence_penalty=0.5)
    async with MemoryCluster("a", "b").running() as cluster:
        found = await cluster.run(Order("task", PROMPT, 16, ["a", "b"], sampler=sampler))
    assert found == MODEL.generate(PROMPT, 16, sampler=sampler)


async def test_an_end_token_is_drafted_and_ends_the_sequence() -> None:
    whole = MODEL.generate(PROMPT, 8)
    async with MemoryCluster("a", "b").running() as cluster:
        found = await cluster.run(Order("task", PROMPT, 8, ["a", "b"], end_ids=(whole[4],)))
    assert found == whole[: whole.index(whole[4]) + 1]


async def test_the_next_epoch_goes_on_where_the_committed_tokens_end() -> None:
    whole = MODEL.generate(PROMPT, 12)
    async with MemoryCluster("a", "b", "c").running() as cluster:
        first = Order("task", PROMPT, 12, ["a", "b"])
        await cluster.assign(first)
        await cluster.start(first)
        await cluster.tokens(first, 3)
        again = Order("task", PROMPT, 12, ["c", "a"], epoch=Epoch(2), generated_ids=tuple(whole[:3]))
        assert await cluster.run(again) == whole[3:]
        await cluster.stop(first)
        assert all(len(worker.seating) == 0 for worker in cluster.workers.values())


async def test_two_rings_over_the_same_stages_run_side_by_side() -> None:
    """Node b holds layers 3 to 6 once, as the last stage of two rings."""
    async with MemoryCluster("a", "b", "c").running() as cluster:
        orders = [Order("t1", prompt_of(1, 30), 15, ["a", "b"]), Order("t2", prompt_of(2, 90), 15, ["c", "b"])]
        found = await asyncio.gather(*(cluster.run(order) for order in orders))
        assert len(cluster["b"].loader.engines) == 1
    assert found == [MODEL.generate(order.prompt_ids, 15) for order in orders]


async def test_a_stopped_session_does_not_hold_up_the_others() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        stays = Order("stays", prompt_of(1, 20), 60, ["a", "b"])
        goes = Order("goes", prompt_of(2, 20), 300, ["a", "b"])
        for order in (stays, goes):
            await cluster.assign(order)
            await cluster.start(order)
        await cluster.tokens(goes, 3)
        # The later stage hears of the stop first: what is on its way there is dropped.
        for node_id in ("b", "a"):
            stop = SessionStop(task_id=goes.task_id, epoch=goes.epoch, reason="cancelled")
            await cluster[node_id].sessions.stop(stop)
            await asyncio.sleep(0)
        assert await cluster.tokens(stays) == MODEL.generate(stays.prompt_ids, 60)


async def test_slots_stay_together_when_sessions_end_in_between() -> None:
    async with MemoryCluster("a", "b", n_slots=8).running() as cluster:
        orders = [Order(f"t{number}", prompt_of(number, 5), 120, ["a", "b"]) for number in range(8)]
        for order in orders:
            await cluster.assign(order)
            await cluster.start(order)
        for order in orders[0:6:2]:
            await cluster.tokens(order, 3)
            await cluster.stop(order)
        left = [orders[1], orders[3], orders[5], orders[6], orders[7]]
        for worker in cluster.workers.values():
            slots = sorted(one.seat.slot for one in worker.seating)
            assert slots == list(range(5))
        assert [await cluster.tokens(order) for order in left] == [
            MODEL.generate(order.prompt_ids, 120) for order in left
        ]


async def test_rows_that_wait_while_the_engine_works_are_run_together() -> None:
    gate = threading.Event()
    async with MemoryCluster("a", "b", before_step=gate.wait).running() as cluster:
        orders = [Order(f"t{number}", prompt_of(number, 4), 20, ["a", "b"]) for number in range(4)]
        for order in orders:
            await cluster.assign(order)
            await cluster.start(order)
        gate.set()
        for order in orders:
            await cluster.tokens(order)
        steps = cluster["b"].loader.engines[0].steps
    decode = [step for step in steps if len(set(step)) == len(step) and len(step) > 1]
    assert max(map(len, decode)) == 4


async def test_a_seat_is_refused_when_every_slot_is_taken() -> None:
    async with MemoryCluster("a", n_slots=1).running() as cluster:
        await cluster.assign(Order("t1", PROMPT, 5, ["a"]))
        with pytest.raises(NoCapacity):
            await cluster.assign(Order("t2", PROMPT, 5, ["a"]))


async def test_an_older_epoch_is_refused() -> None:
    async with MemoryCluster("a").running() as cluster:
        await cluster.assign(Order("task", PROMPT, 5, ["a"], epoch=Epoch(3)))
        with pytest.raises(StaleEpoch):
            await cluster.assign(Order("task", PROMPT, 5, ["a"], epoch=Epoch(2)))


async def test_an_assignment_that_comes_twice_takes_one_slot() -> None:
    async with MemoryCluster("a").running() as cluster:
        order = Order("task", PROMPT, 5, ["a"])
        await cluster.assign(order)
        await cluster.assign(order)
        assert len(cluster["a"].seating) == 1


def hidden_frame(task: str, position: int, *, epoch: int = 1, kind: FrameKind = FrameKind.DECODE) -> Frame:
    row = Row(TaskId(task), Epoch(epoch), position)
    return Frame(kind, 0, 1, rows=(row,), hidden=HiddenRows(bytes(32), 8))


async def test_rows_of_another_epoch_are_dropped_and_counted() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        await cluster.assign(Order("task", PROMPT, 5, ["a", "b"], epoch=Epoch(2)))
        ring = cluster["b"].ring
        ring.take(NodeId("a"), [hidden_frame("task", 0, epoch=1), hidden_frame("never heard of", 0)])
        assert ring.dropped["unknown"] == 2


@pytest.mark.parametrize(
    ("sender", "frame", "said"),
    [
        ("a", hidden_frame("task", 10), "does not continue"),
        ("c", hidden_frame("task", 0), "another node"),
        ("a", Frame(FrameKind.DECODE, 0, 1, rows=(Row(TaskId("task"), Epoch(1), 0),)), "without rows"),
        ("a", Frame(FrameKind.TOKENS, 0, 1, rows=(Row(TaskId("task"), Epoch(1), 1, 3),)), "not at stage 0"),
    ],
)
async def test_rows_that_must_not_be_break_the_protocol(sender: str, frame: Frame, said: str) -> None:
    async with MemoryCluster("a", "b", "c").running() as cluster:
        await cluster.assign(Order("task", PROMPT, 5, ["a", "b"]))
        with pytest.raises(ProtocolViolation, match=said):
            cluster["b"].ring.take(NodeId(sender), [frame])


async def test_a_token_outside_the_vocabulary_breaks_the_protocol() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        order = Order("task", PROMPT, 5, ["a", "b"])
        await cluster.assign(order)
        tokens = Frame(FrameKind.TOKENS, 0, 0, rows=(Row(order.task_id, Epoch(1), 10, 64),))
        with pytest.raises(ProtocolViolation, match="vocabulary"):
            cluster["a"].ring.take(NodeId("b"), [tokens])


async def test_a_broken_link_is_reported_by_both_ends_and_its_seats_are_freed() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        order = Order("task", PROMPT, 300, ["a", "b"])
        await cluster.assign(order)
        await cluster.start(order)
        await cluster.tokens(order, 2)
        cluster["a"].carrier.cut(NodeId("b"))
        told = cluster.coordinator.told
        await cluster.coordinator.until(lambda: sum(isinstance(report, LinkFault) for report in told) == 2)
        faults = {(fault.peer, fault.outgoing) for fault in told if isinstance(fault, LinkFault)}
        assert faults == {("b", True), ("a", False)}
        assert len(cluster["a"].seating) == len(cluster["b"].seating) == 0
        # The next epoch opens the link anew.
        done = tuple(cluster.drafted(order))
        again = Order("task", PROMPT, len(done) + 5, ["a", "b"], epoch=Epoch(2), generated_ids=done)
        assert await cluster.run(again) == MODEL.generate(PROMPT, len(done) + 5)[len(done) :]


async def test_an_engine_fault_is_reported_and_the_stage_is_loaded_again() -> None:
    faults = [EngineFault("the library gave up")]

    def before_step() -> None:
        if faults:
            raise faults.pop()

    async with MemoryCluster("a", before_step=before_step).running() as cluster:
        order = Order("task", PROMPT, 5, ["a"])
        await cluster.assign(order)
        await cluster.start(order)
        told = cluster.coordinator.told
        await cluster.coordinator.until(lambda: any(isinstance(report, SessionFault) for report in told))
        assert [report.error_code for report in told if isinstance(report, SessionFault)] == ["engine_fault"]
        again = Order("task", PROMPT, 5, ["a"], epoch=Epoch(2))
        assert await cluster.run(again) == MODEL.generate(PROMPT, 5)
        assert len(cluster["a"].loader.engines) == 2


async def test_a_refused_batch_costs_its_sessions_and_not_the_stage() -> None:
    faults = [NoSlotSpace("full")]

    def before_step() -> None:
        if faults:
            raise faults.pop()

    async with MemoryCluster("a", before_step=before_step).running() as cluster:
        order = Order("task", PROMPT, 5, ["a"])
        await cluster.assign(order)
        await cluster.start(order)
        told = cluster.coordinator.told
        await cluster.coordinator.until(lambda: any(isinstance(report, SessionFault) for report in told))
        assert await cluster.run(Order("other", PROMPT, 5, ["a"])) == MODEL.generate(PROMPT, 5)
        assert len(cluster["a"].loader.engines) == 1


async def test_steps_and_loads_are_told_as_events() -> None:
    async with MemoryCluster("a").running() as cluster:
        await cluster.run(Order("task", PROMPT, 5, ["a"]))
        events = cluster["a"].events
        assert {event.role for event in events.of(StepTimed)} == {"prefill", "decode"}
        assert [(event.start, event.end) for event in events.of(StageLoaded)] == [(0, 6)]
