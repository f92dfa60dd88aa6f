"""What a worker finds when it is asked to measure itself: real services around synthetic engines."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from services.worker.service.engine_thread import EngineThread
from services.worker.service.probing import LARGE_PROBES, PAYLOAD_BYTES, PAYLOAD_WIDTH, SMALL_PROBES, LinkProbes
from services.worker.service.trials import Trials
from shared.contracts.frame import PROBE_NUMBERS, Frame, FrameKind, FrameReader, Row
from shared.contracts.messages import LinkEnds, MeasureNode, MeetPeers, NodeMeasured, Peer, StageRef
from shared.domain.errors import ProtocolViolation, Unavailable
from shared.domain.hidden import HiddenRows
from shared.domain.ids import Epoch, ModelId, NodeId, TaskId
from shared.domain.measured import CallTime, StageTimes, check_stages
from shared.domain.plan import LayerRange
from shared.runtime.clock import Clock, SystemClock
from tests.fakes.engine import TRIAL_LAYERS, SyntheticLoader, SyntheticModel
from tests.fakes.worker_parts import MemoryCluster, MemoryWorker, Order

STAGE = StageRef(model_id=ModelId("synthetic"), model_root="root", layers=LayerRange(0, 3), num_layers=6)
LAST = STAGE.model_copy(update={"layers": LayerRange(3, 6)})
CALL_S = 0.03


class Machine(Clock):
    """Time passes in engine calls only."""

    def __init__(self) -> None:
        self.loader = SyntheticLoader(before_step=self._step)
        self.is_throttled = False
        self.cold_s = 0.0
        """That the first call takes longer."""
        self._now_s = self._computed_s = 0.0
        self._calls = 0

    def now_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return self._now_s

    def thread_s(self) -> float:
        return self._computed_s

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError

    def _step(self) -> None:
        self._calls += 1
        call_s = CALL_S + (self.cold_s if self._calls == 1 else 0.0)
        self._now_s += call_s
        self._computed_s += call_s
        if self.is_throttled and self._calls % 4 == 0:
            self._now_s += 3 * CALL_S  # the kernel takes the core away


def trials_on(machine: Machine, *, is_busy: Callable[[], bool] = lambda: False, cores: int = 2) -> Trials:
    return Trials(
        loader=machine.loader,
        thread=EngineThread(),
        cores=cores,
        rows_per_slot=256,
        is_busy=is_busy,
        clock=machine,
    )


def ends(own: str, peer: str) -> LinkEnds:
    """What `own` is told of `peer`."""
    return LinkEnds(
        previous=Peer(node_id=NodeId(peer), address=f"http://{peer}", link_token=f"{peer}>{own}"),
        next=Peer(node_id=NodeId(peer), address=f"http://{peer}", link_token=f"{own}>{peer}"),
    )


async def found_by(worker: MemoryWorker, message: MeasureNode) -> NodeMeasured:
    before = len(worker.coordinator.told)
    await worker.measuring.measure(message)
    await worker.coordinator.until(lambda: _told(worker, before) is not None)
    found = _told(worker, before)
    assert found is not None
    return found


def _quicker(times: StageTimes, factor: float) -> StageTimes:
    def scaled(calls: tuple[CallTime, ...]) -> tuple[CallTime, ...]:
        return tuple(replace(call, seconds=call.seconds / factor, cpu_s=call.cpu_s / factor) for call in calls)

    return replace(times, decode=scaled(times.decode), prompt=scaled(times.prompt), replay=scaled(times.replay))


def _told(worker: MemoryWorker, since: int) -> NodeMeasured | None:
    return next((told for told in worker.coordinator.told[since:] if isinstance(told, NodeMeasured)), None)


async def test_the_pace_is_the_time_of_a_call_by_the_bytes_of_its_layers() -> None:
    pace = await trials_on(Machine()).pace()
    assert pace.decode_s_per_byte == pytest.approx(CALL_S / (TRIAL_LAYERS * 1_000))
    assert pace.prefill_s_per_byte == pytest.approx(CALL_S / 32 / (TRIAL_LAYERS * 1_000))


async def test_a_node_whose_core_is_taken_away_now_and_then_is_as_slow_as_that_makes_it() -> None:
    machine = Machine()
    machine.is_throttled = True
    pace = await trials_on(machine).pace()
    seconds = pace.decode_s_per_byte * TRIAL_LAYERS * 1_000
    assert seconds == pytest.approx(1.75 * CALL_S, rel=0.1)
    assert pace.prefill_s_per_byte == pytest.approx(pace.decode_s_per_byte / 32)  # the same call here


async def test_the_first_call_does_not_count_however_long_it_takes() -> None:
    machine = Machine()
    machine.cold_s = 0.5
    pace = await trials_on(machine, cores=1).pace()
    assert pace.decode_s_per_byte == pytest.approx(CALL_S / (TRIAL_LAYERS * 1_000))


async def test_a_trial_that_sessions_interrupt_ends_at_once() -> None:
    with pytest.raises(Unavailable):
        await trials_on(Machine(), is_busy=lambda: True).pace()


async def test_the_stages_that_a_worker_holds_are_timed_and_left_empty() -> None:
    async with MemoryCluster("a").running() as cluster:
        worker = cluster["a"]
        for ref in (STAGE, LAST):
            await worker.stages.load(ref)
        told = await found_by(worker, MeasureNode(has_pace=True, stages=(STAGE, LAST)))
        assert [(stage.start, stage.end) for stage in told.stages] == [(0, 3), (3, 6)]
        check_stages(told.stages)
        assert {call.rows for call in told.stages[0].decode} == {1, 4}  # a slot for each row
        assert {call.rows for call in told.stages[1].replay} == {8, 32}
        assert told.stages[0].replay == told.stages[0].prompt
        order = Order("task", tuple(range(10)), 8, ["a"])
        assert await cluster.run(order) == SyntheticModel(6).generate(order.prompt_ids, 8)


async def test_a_stage_that_is_loaded_again_has_its_times() -> None:
    async with MemoryCluster("a").running() as cluster:
        worker = cluster["a"]
        await worker.stages.load(STAGE)
        told = await found_by(worker, MeasureNode(has_pace=False, stages=(STAGE,)))
        await worker.stages.load(STAGE.model_copy(update={"layers": LayerRange(0, 4)}))  # the model is cut otherwise
        assert worker.stages.get(STAGE) is None
        assert (await worker.stages.load(STAGE)).times == told.stages[0]


async def test_who_holds_rows_of_sessions_is_not_tried() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        order = Order("task", tuple(range(10)), 8, ["a", "b"])
        await cluster.assign(order)
        held = [runner.ref for runner in cluster["a"].stages.runners]
        told = await found_by(cluster["a"], MeasureNode(has_pace=True, stages=tuple(held)))
    assert told.pace is None
    assert told.stages == ()


async def test_the_way_to_a_peer_is_timed_over_the_links_that_rows_take() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        await cluster["b"].measuring.meet(MeetPeers(peers=(ends("b", "a"),)))
        told = await found_by(cluster["a"], MeasureNode(has_pace=False, peers=(ends("a", "b"),)))
        (link,) = told.links
        assert link.peer == "b"
        assert 0 < link.rtt_s < 1
        assert link.bytes_per_s > 1e6
        assert list(cluster["a"].outgoing.peers) == ["b"]
        assert list(cluster["b"].outgoing.peers) == ["a"]


async def test_links_that_carry_rows_stay_as_they_are() -> None:
    """One that is opened anew loses the rows under way."""
    async with MemoryCluster("a", "b").running() as cluster:
        order = Order("task", tuple(range(10)), 8, ["a", "b"])
        await cluster.assign(order)
        other = ends("a", "b").model_copy(
            update={"next": Peer(node_id=NodeId("b"), address="http://elsewhere", link_token="another")}
        )
        await cluster["a"].measuring.meet(MeetPeers(peers=(other,)))
        await cluster.start(order)
        assert await cluster.tokens(order) == SyntheticModel(6).generate(order.prompt_ids, 8)


async def test_only_probes_that_a_coordinator_has_announced_are_answered() -> None:
    sent: list[bytes] = []
    probes = LinkProbes(send=lambda _, data: sent.append(data), clock=SystemClock(), new_number=lambda: 0)
    peer, probe = NodeId("b"), Frame(FrameKind.PROBE, stage=PROBE_NUMBERS - 1)
    probes.take(peer, probe)
    assert sent == []
    probes.expect(peer)
    for _ in range(100):
        probes.take(peer, probe)
        probes.take(NodeId("c"), probe)
    assert len(sent) == 1 + SMALL_PROBES + 2 * LARGE_PROBES
    assert FrameReader().feed(sent[0]) == [replace(probe, final=True)]


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": (Row(TaskId("t"), Epoch(1), 0),)},
        {"hidden": HiddenRows(bytes(PAYLOAD_BYTES + 4 * PAYLOAD_WIDTH), PAYLOAD_WIDTH)},
    ],
)
async def test_what_no_probe_carries_is_refused(changes: dict[str, Any]) -> None:
    probes = LinkProbes(send=lambda _, __: None, clock=SystemClock(), new_number=lambda: 0)
    with pytest.raises(ProtocolViolation):
        probes.take(NodeId("b"), replace(Frame(FrameKind.PROBE), **changes))


async def test_answers_that_nobody_waits_for_change_nothing() -> None:
    async with MemoryCluster("a", "b").running() as cluster:
        answer = Frame(FrameKind.PROBE, stage=7, final=True)
        cluster["a"].ring.take(NodeId("b"), [answer])
        assert cluster["a"].ring.dropped == {}


async def test_a_measuring_that_fails_as_nobody_foresaw_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async with MemoryCluster("a").running() as cluster:
        worker = cluster["a"]

        def full_disk() -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(worker.loader, "load_trial", full_disk)
        assert await found_by(worker, MeasureNode(has_pace=True)) == NodeMeasured()
        monkeypatch.undo()
        assert (await found_by(worker, MeasureNode(has_pace=True))).pace is not None


async def test_a_second_question_begins_nothing_while_the_first_is_open() -> None:
    async with MemoryCluster("a").running() as cluster:
        measuring = cluster["a"].measuring
        assert (await measuring.measure(MeasureNode(has_pace=True))).ready is False
        assert (await measuring.measure(MeasureNode(has_pace=True))).ready is True
        await cluster.coordinator.until(
            lambda: any(isinstance(told, NodeMeasured) for told in cluster.coordinator.told)
        )
        assert (await measuring.measure(MeasureNode(has_pace=False))).ready is False


async def test_calls_that_have_become_slower_are_told_as_drift() -> None:
    async with MemoryCluster("a").running() as cluster:
        worker = cluster["a"]
        first, second = (Order(task, tuple(range(10)), 8, ["a"]) for task in ("t1", "t2"))
        await cluster.run(first)
        await cluster.stop(first)
        (runner,) = worker.stages.runners
        await found_by(worker, MeasureNode(has_pace=False, stages=(runner.ref,)))
        assert runner.times is not None
        assert worker.stages.drift() is None
        runner.times = _quicker(runner.times, 1_000)
        await cluster.run(second)
        drift = worker.stages.drift()
        assert drift is not None
        assert min(drift.wall, drift.cpu) > 10
        assert drift.chunk is not None
        assert drift.chunk > 10
        assert drift.batch is None
        assert 0 < drift.handling_s < 1
        await worker.stages.load(
            runner.ref.model_copy(update={"layers": LayerRange(0, 3)})
        )  # the model is cut otherwise
        assert worker.stages.get(runner.ref) is None
        assert worker.stages.drift() == drift  # fewer layers make no node quick again


async def test_calls_beside_which_a_stage_was_loaded_say_nothing_of_later_ones() -> None:
    async with MemoryCluster("a").running() as cluster:
        worker = cluster["a"]
        before, beside, after = (Order(task, tuple(range(10)), 8, ["a"]) for task in ("t1", "t2", "t3"))
        await cluster.run(before)
        await cluster.stop(before)
        (runner,) = worker.stages.runners
        await found_by(worker, MeasureNode(has_pace=False, stages=(runner.ref,)))
        with worker.thread.beside():
            await cluster.run(beside)
        assert worker.stages.drift() is None
        await cluster.stop(beside)
        await cluster.run(after)
        assert worker.stages.drift() is not None
