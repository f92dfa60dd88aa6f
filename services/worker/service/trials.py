"""Times what calls take here: of the stage that every node is tried on, and of the stages this worker holds.

Each size of call is repeated for a tenth of a second, after calls that do not count: the first ones wake threads and
find the weights cold. Of repeated rounds the best counts: others on the machine can only make a call slower.

Where a quota gives the node a part of a core, the kernel hands that out in periods of a tenth of a second or so, and
a call is quick or slow by when in a period it begins. What it computes is the same all the same. So there a call takes
what it computes over the share of a core that the node got while it was tried.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import numpy as np

from services.worker.domain.token_rule import choose_token
from services.worker.ports import EngineLoader, Mask, Rows, StageEngine
from services.worker.service.engine_thread import EngineThread
from services.worker.service.runner import StageRunner
from shared.domain.errors import Unavailable
from shared.domain.measured import CallTime, Pace, StageTimes
from shared.domain.task import SamplerParams
from shared.runtime.clock import Clock

ROUND_S = 0.1
LONG_CALL_S = 1.0  # which is not made again to have it warm
WHOLE_CORE = 0.8  # a node that gets less of one is held by a quota, not by what else runs for a moment
MAX_CALLS = 200  # of a round; as many rows a decode round adds to its slots
PACE_ROUNDS = 3
DECODE_ROWS = (1, 4, 16)
CHUNK_ROWS = (8, 32)
PACE_CHUNK_ROWS = 32
LEAST_S = 1e-7  # what clocks cannot tell apart
_SAMPLER = SamplerParams()
_LARGEST = np.float32(16.0)  # hidden states are larger than 1; the exact size does not matter


class Kind(Enum):
    """As in `StageTimes`."""

    DECODE = auto()
    PROMPT = auto()
    REPLAY = auto()


@dataclass(frozen=True, slots=True)
class _Subject:
    """A stage whose calls are timed. `n_rows`: that a slot holds. `n_vocab`: of an end of the model."""

    n_embd: int
    n_rows: int
    n_vocab: int | None = None
    is_first: bool = False
    is_last: bool = False

    def rows(self, count: int) -> Rows | np.ndarray[tuple[int], np.dtype[np.int32]]:
        if self.is_first:
            return np.arange(count, dtype=np.int32) % np.int32(self.n_vocab or 1)
        random = np.random.Generator(np.random.Philox(key=count))
        return random.random((count, self.n_embd), np.float32) * _LARGEST


@dataclass(slots=True)
class _Share:
    """Of a core, what the node gets while calls in one thread follow each other without rest."""

    took_s: float = 0.0
    took_cpu_s: float = 0.0

    def note(self, took_s: float, took_cpu_s: float) -> None:
        self.took_s, self.took_cpu_s = self.took_s + took_s, self.took_cpu_s + took_cpu_s

    def in_the_long_run(self, call: CallTime) -> CallTime:
        share = self.took_cpu_s / self.took_s
        return call if share >= WHOLE_CORE else replace(call, seconds=call.cpu_s * call.threads / share)


Lend = Callable[[], tuple[StageEngine, Sequence[int]]]
"""The engine, and slots of it that are empty and have to be so again."""


class Trials:
    """One at a time."""

    def __init__(
        self,
        *,
        loader: EngineLoader,
        thread: EngineThread,
        cores: int,
        rows_per_slot: int,
        is_busy: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """`is_busy`: whether sessions need this worker, which come first."""
        self._loader, self._thread = loader, thread
        self._thread_counts = sorted({1, max(1, cores // 2), cores})
        self._rows_per_slot = rows_per_slot
        self._is_busy, self._clock = is_busy, clock
        self._share = _Share()

    async def pace(self) -> Pace:
        """Of the stage of trials. Raises `Unavailable` when sessions came between, and as `EngineLoader.load_trial`."""
        stage = await asyncio.to_thread(self._loader.load_trial)
        self._share = _Share()
        subject = _Subject(stage.n_embd, n_rows=MAX_CALLS)
        slots = range(stage.n_slots)

        def lend() -> tuple[StageEngine, Sequence[int]]:
            return stage.engine, slots

        try:
            one = await self._quickest(lend, subject, Kind.DECODE, 1, rounds=PACE_ROUNDS)
            chunk = await self._quickest(lend, subject, Kind.PROMPT, PACE_CHUNK_ROWS, rounds=PACE_ROUNDS)
        finally:
            await self._thread.run(stage.engine.close)
        one_s, chunk_s = (min(self._share.in_the_long_run(call).seconds for call in calls) for calls in (one, chunk))
        return Pace(
            decode_s_per_byte=one_s / stage.layer_bytes,
            prefill_s_per_byte=chunk_s / PACE_CHUNK_ROWS / stage.layer_bytes,
        )

    async def stage(self, runner: StageRunner) -> StageTimes:
        """Of a loaded stage. Raises `Unavailable` when sessions came between."""
        loaded = runner.loaded
        self._share = _Share()
        subject = _Subject(
            loaded.n_embd,
            n_rows=min(MAX_CALLS, self._rows_per_slot),
            n_vocab=loaded.n_vocab,
            is_first=runner.is_first,
            is_last=runner.is_last,
        )
        decode = await self._sizes(runner.lend, subject, Kind.DECODE, DECODE_ROWS, most=runner.n_slots)
        prompt = await self._sizes(runner.lend, subject, Kind.PROMPT, CHUNK_ROWS, most=subject.n_rows)
        replay = prompt
        if runner.is_last:
            replay = await self._sizes(runner.lend, subject, Kind.REPLAY, CHUNK_ROWS, most=subject.n_rows)
        found = (tuple(map(self._share.in_the_long_run, calls)) for calls in (decode, prompt, replay))
        return StageTimes(runner.ref.model_root, runner.ref.layers.start, runner.ref.layers.end, *found)

    async def _sizes(
        self, lend: Lend, subject: _Subject, kind: Kind, sizes: Sequence[int], *, most: int
    ) -> tuple[CallTime, ...]:
        usable = [rows for rows in sizes if rows <= most] or [most]
        return tuple(
            itertools.chain.from_iterable([await self._quickest(lend, subject, kind, rows) for rows in usable])
        )

    async def _quickest(
        self, lend: Lend, subject: _Subject, kind: Kind, rows: int, *, rounds: int = 2
    ) -> tuple[CallTime, ...]:
        """With the best number of threads, and with one if that is another."""
        found = {threads: await self._round(lend, subject, kind, rows, threads) for threads in self._thread_counts}
        best = min(found, key=lambda threads: found[threads].seconds)
        for _ in range(rounds - 1 if found[best].seconds < ROUND_S else 0):
            again = await self._round(lend, subject, kind, rows, best)
            found[best] = min(found[best], again, key=lambda call: call.seconds)
        return tuple(found[threads] for threads in dict.fromkeys((best, 1)))

    async def _round(self, lend: Lend, subject: _Subject, kind: Kind, rows: int, threads: int) -> CallTime:
        if self._is_busy():
            raise Unavailable("sessions came between")
        engine, slots = lend()  # just before it is used: later they may be another's
        used = tuple(slots[: rows if kind is Kind.DECODE else 1])
        if len(used) < (rows if kind is Kind.DECODE else 1):
            raise Unavailable("rows of sessions are kept in the slots")
        calls = _CallSeries(engine, subject, kind, used, rows)
        return await self._thread.run(lambda: self._mean(calls, rows, threads), n_threads=threads)

    def _mean(self, calls: "_CallSeries", rows: int, threads: int) -> CallTime:
        """On the engine's thread."""
        calls.engine.set_threads(threads)
        try:
            first = self._timed(calls, rows, threads, ROUND_S / 10)
            return first if first.seconds >= LONG_CALL_S else self._timed(calls, rows, threads, ROUND_S)
        finally:
            calls.clear()

    def _timed(self, calls: "_CallSeries", rows: int, threads: int, round_s: float) -> CallTime:
        """The mean of the calls that fill so much time."""
        began_s, began_cpu_s, count = self._clock.now_s(), self._clock.thread_s(), 0
        while True:
            calls.call()
            count += 1
            took_s = self._clock.now_s() - began_s
            if took_s >= round_s or not calls.may_go_on:
                took_cpu_s = self._clock.thread_s() - began_cpu_s
                if threads == 1:
                    self._share.note(took_s, took_cpu_s)
                return CallTime(rows, max(LEAST_S, took_s / count), max(LEAST_S, took_cpu_s / count), threads)


class _CallSeries:
    """Calls of one kind and size, one after the other on the same slots."""

    def __init__(self, engine: StageEngine, subject: _Subject, kind: Kind, used: tuple[int, ...], rows: int) -> None:
        self.engine = engine
        self._subject, self._kind, self._used = subject, kind, used
        self._x = subject.rows(rows)
        self._slots = np.array(used if kind is Kind.DECODE else used * rows, np.int32)
        self._want = self._wanted(rows)
        self._count = 0

    @property
    def may_go_on(self) -> bool:
        return self._count < self._subject.n_rows

    def call(self) -> None:
        rows = len(self._x)
        if self._kind is Kind.DECODE:
            positions = np.full(rows, self._count, np.int32)
        else:
            self.engine.truncate(self._used[0], 0)
            positions = np.arange(rows, dtype=np.int32)
        given = self.engine.forward(self._x, self._slots, positions, self._want)
        self._count += 1
        if self._subject.is_last:
            for logits in given:
                choose_token(logits, position=self._count, params=_SAMPLER, prompt_ids=(), generated_ids=())

    def clear(self) -> None:
        for slot in self._used:
            self.engine.drop(slot)

    def _wanted(self, rows: int) -> Mask | None:
        if not self._subject.is_last:
            return None
        return np.ones(rows, np.bool_) if self._kind is not Kind.PROMPT else np.arange(rows) == rows - 1
