"""The stages this worker holds: fetched, checked and loaded when asked for, kept for later sessions."""

import asyncio
import logging
from collections.abc import Iterable
from typing import NamedTuple

from services.worker.domain.drift import DriftMeter
from services.worker.ports import EngineLoader, LoadedEngine, StageFile, StageFiles
from services.worker.service.engine_thread import EngineThread
from services.worker.service.runner import Deliver, StageRunner
from shared.contracts.messages import StageRef
from shared.domain.errors import OutOfMemory
from shared.domain.ids import NodeId
from shared.domain.measured import MAX_TIMED_STAGES, Drift, StageTimes
from shared.domain.numerics import TILE_ROWS, StageFacts
from shared.events.catalogue import StageLoaded
from shared.events.publisher import Publisher
from shared.runtime.clock import Clock
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)

FORGET_EVERY_S = 5.0


class StageKey(NamedTuple):
    model_root: str
    start: int
    end: int


class StagePool:
    def __init__(
        self,
        *,
        node_id: NodeId,
        files: StageFiles,
        loader: EngineLoader,
        thread: EngineThread,
        target: Deliver,
        memory_bytes: int,
        n_slots: int,
        ctx_per_slot: int,
        tasks: BackgroundTasks,
        clock: Clock,
        events: Publisher,
    ) -> None:
        """`memory_bytes`: what weights and KV caches of all stages together may take."""
        self._node_id = node_id
        self._files = files
        self._loader = loader
        self._thread = thread
        self._target = target
        self._memory_bytes = memory_bytes
        self._n_slots = n_slots
        self._ctx_per_slot = ctx_per_slot
        self._tasks = tasks
        self._clock = clock
        self._events = events
        self._loaded: dict[StageKey, StageRunner] = {}
        self._loading: dict[StageKey, asyncio.Task[StageRunner]] = {}
        self._tried: dict[StageKey, tuple[StageTimes, DriftMeter]] = {}
        """What calls took at a stage's trial, and how they went since; also of stages that were dropped. Those tried
        longest ago first."""
        self._load_lock = asyncio.Lock()
        self._widest_row = 0
        """Values in a row of the widest stage so far: rows for one that was dropped may still be under way."""

    @property
    def runners(self) -> Iterable[StageRunner]:
        return self._loaded.values()

    @property
    def max_payload_bytes(self) -> int:
        """Of a frame for any stage here: a chunk, or a row for every slot. Twice: as many more may come
        of sessions that ended here and not yet at the sender."""
        return max(TILE_ROWS, 2 * self._n_slots) * self._widest_row * 4

    def get(self, ref: StageRef) -> StageRunner | None:
        """The stage, if it is loaded."""
        return self._loaded.get(_key(ref))

    async def load(self, ref: StageRef) -> StageRunner:
        """The stage, loaded if need be; callers that overlap wait for the same load.

        Raises what `StageFiles.fetch` and `EngineLoader.load` raise, and `OutOfMemory` when it does not fit beside
        the stages in use.
        """
        runner = self.get(ref)
        if runner is not None:
            return runner
        key = _key(ref)
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = self._tasks.start(self._load(ref), name=f"load {ref.model_id} {ref.layers}")
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        return await asyncio.shield(task)

    async def prepare(self, ref: StageRef) -> StageFacts:
        """Have the stage's file here and tested, with rooms for no session, and let go of its memory again. What
        `EngineLoader.load` has found out of it is not found out again when it is to be held.

        Raises as `load`; stages that are held stay.
        """
        with self._thread.beside():
            file = await self._files.fetch(ref)
            async with self._load_lock:
                if self._memory_bytes - self._held_bytes() < file.size_bytes:
                    layers = f"layers {ref.layers} of {ref.model_id}"
                    raise OutOfMemory(f"{layers} do not fit beside the stages that are held")
                loaded = await asyncio.to_thread(self._loader.load, ref, file, n_slots=1, ctx_per_slot=TILE_ROWS)
                loaded.engine.close()
        return loaded.facts

    async def forget_once(self) -> None:
        """Let go of rows that nobody has asked for in time. To be called in a loop."""
        await self._clock.sleep(FORGET_EVERY_S)
        for runner in self.runners:
            runner.forget_expired()

    def note_times(self, runner: StageRunner, times: StageTimes) -> None:
        """What calls of a stage took at its trial. Coordinators do not ask again when it is dropped and loaded anew."""
        runner.times = times
        key = _key(runner.ref)
        self._tried.pop(key, None)
        self._tried[key] = times, runner.drift
        if len(self._tried) > MAX_TIMED_STAGES:
            del self._tried[next(iter(self._tried))]

    def drift(self) -> Drift | None:
        """Of the calls of all stages of late. None: there were none."""
        held = [meter for key, (_, meter) in self._tried.items() if key in self._loaded]
        dropped = [meter for key, (_, meter) in self._tried.items() if key not in self._loaded]
        return DriftMeter.of_all(held, dropped, now_s=self._clock.now_s())

    def close(self) -> None:
        for runner in self._loaded.values():
            runner.close()
        self._loaded.clear()

    async def _load(self, ref: StageRef) -> StageRunner:
        with self._thread.beside():
            return await self._fetch_and_hold(ref)

    async def _fetch_and_hold(self, ref: StageRef) -> StageRunner:
        began_s = self._clock.now_s()
        file = await self._files.fetch(ref)
        async with self._load_lock:
            self._drop_superseded(ref)
            self._make_room(file.size_bytes, ref)
            loaded = await asyncio.to_thread(self._open, ref, file)
            memory_bytes = file.size_bytes + self._n_slots * self._ctx_per_slot * loaded.kv_bytes_per_row
            try:
                self._make_room(memory_bytes, ref)
            except OutOfMemory:
                loaded.engine.close()
                raise
            self._widest_row = max(self._widest_row, loaded.n_embd)
            took_ms = (self._clock.now_s() - began_s) * 1000
            runner = self._loaded[_key(ref)] = StageRunner(
                ref,
                loaded,
                n_slots=self._n_slots,
                memory_bytes=memory_bytes,
                load_ms=took_ms,
                thread=self._thread,
                target=self._target,
                on_lost=self._replace,
                on_outlived=self._drop,
                clock=self._clock,
            )
            runner.times, runner.drift = self._tried.get(_key(ref), (None, runner.drift))
        layers = ref.layers
        self._events.publish(
            StageLoaded(self._node_id, ref.model_id, layers.start, layers.end, file.size_bytes, took_ms)
        )
        log.info("stage_loaded", extra={"model": ref.model_id, "layers": str(layers), "ms": round(took_ms)})
        return runner

    def _open(self, ref: StageRef, file: StageFile) -> LoadedEngine:
        return self._loader.load(ref, file, n_slots=self._n_slots, ctx_per_slot=self._ctx_per_slot)

    def _drop_superseded(self, ref: StageRef) -> None:
        """Drop the stages that share layers with a new one, since the model is cut otherwise now: those in use once
        their last session has ended."""
        for runner in list(self.runners):
            old = runner.ref
            overlaps = old.layers.start < ref.layers.end and ref.layers.start < old.layers.end
            if old.model_root != ref.model_root or not overlaps:
                continue
            if runner.is_idle:
                self._drop(runner)
            else:
                runner.is_superseded = True

    def _make_room(self, needed_bytes: int, ref: StageRef) -> None:
        """Drop stages nobody uses, the one unused longest first, until `needed_bytes` are free."""
        idle = self._idle()
        while (free_bytes := self._memory_bytes - self._held_bytes()) < needed_bytes:
            if not idle:
                raise OutOfMemory(
                    f"layers {ref.layers} of {ref.model_id} need {needed_bytes} bytes, {max(0, free_bytes)} are free"
                )
            self._drop(idle.pop(0))

    def _idle(self) -> list[StageRunner]:
        """Stages nobody uses, the one unused longest first."""
        return sorted((runner for runner in self.runners if runner.is_idle), key=lambda runner: runner.used_at_s)

    def _drop(self, runner: StageRunner) -> None:
        del self._loaded[_key(runner.ref)]
        runner.close()
        log.info("stage_dropped", extra={"model": runner.ref.model_id, "layers": str(runner.ref.layers)})

    def _held_bytes(self) -> int:
        return sum(runner.memory_bytes for runner in self.runners)

    def _replace(self, runner: StageRunner) -> None:
        """Its engine broke: load the stage again, so that the next assignment finds it ready."""
        if self._loaded.get(_key(runner.ref)) is runner:
            del self._loaded[_key(runner.ref)]
            _ = self._tasks.start(self.load(runner.ref), name=f"reload {runner.ref.layers}")


def _key(ref: StageRef) -> StageKey:
    return StageKey(ref.model_root, ref.layers.start, ref.layers.end)
