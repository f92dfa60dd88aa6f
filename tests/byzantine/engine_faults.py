"""Engines that compute something else than the model says. Plugged in by constructor, in place of the honest loader."""

import time
from dataclasses import replace
from typing import ClassVar

import numpy as np

from services.worker.ports import EngineLoader, Ints, LoadedEngine, Mask, Rows, StageEngine, StageFile, TrialStage
from shared.contracts.messages import StageRef
from tests.byzantine.seat_watch import Place

SLIGHTLY = np.float32(1e-3)
PAUSE_S = 6.0  # longer than the phase timeout of the kit's clusters


class Fault:
    """What an engine does wrong: to the rows it is given, or to those it gives back."""

    is_omission: ClassVar[bool] = False
    """It gives nothing false, only nothing in time."""

    def feed(self, given: Ints | Rows, positions: Ints) -> Ints | Rows:
        """What is computed in place of `given`: int32 [rows] or float32 [rows, n_embd]."""
        return given

    def alter(self, given: Ints | Rows, result: Rows, calls: int, *, is_last: bool) -> Rows:
        """`result`: hidden states float32 [rows, n_embd], or logits float32 [rows, n_vocab]. `calls`: how many the seat
        has had, this one included."""
        return result


class WrongHidden(Fault):
    """A small error in every row."""

    def alter(self, given: Ints | Rows, result: Rows, calls: int, *, is_last: bool) -> Rows:
        return np.asarray(result * (1 + SLIGHTLY), np.float32)


class RarelyWrong(Fault):
    """Honest but for every `every`-th call."""

    def __init__(self, every: int) -> None:
        self._every = every

    def alter(self, given: Ints | Rows, result: Rows, calls: int, *, is_last: bool) -> Rows:
        return result if calls % self._every else WrongHidden().alter(given, result, calls, is_last=is_last)


class SkippedLayers(Fault):
    """Passes its input on as its output; the first and the last stage, which cannot, give zeros."""

    def alter(self, given: Ints | Rows, result: Rows, calls: int, *, is_last: bool) -> Rows:
        if is_last or given.dtype != np.float32:
            return np.zeros_like(result)
        return np.array(given, np.float32)


class OtherToken(Fault):
    """The last stage prefers the second best token; other stages err a little."""

    def alter(self, given: Ints | Rows, result: Rows, calls: int, *, is_last: bool) -> Rows:
        if not is_last:
            return WrongHidden().alter(given, result, calls, is_last=is_last)
        altered = result.copy()
        for row in altered:
            best, second = np.argsort(row)[-1:-3:-1]
            row[[best, second]] = row[[second, best]]
        return altered


class Lazy(Fault):
    """Guesses whenever several rows come at once, as they do for an auditor."""

    def alter(self, given: Ints | Rows, result: Rows, calls: int, *, is_last: bool) -> Rows:
        return result if len(given) == 1 else np.zeros_like(result)


class SkippedRows(Fault):
    """Runs every 5th row as if it were the one at its side: its cache is stale from there on."""

    def feed(self, given: Ints | Rows, positions: Ints) -> Ints | Rows:
        altered = given.copy()
        for index in np.flatnonzero(positions % 5 == 2):
            altered[index] = given[index - 1] if index else np.roll(given[index], 1)
        return altered


class Silent(Fault):
    """Answers heartbeats and takes seats, and then computes nothing for a long time."""

    is_omission = True

    def feed(self, given: Ints | Rows, positions: Ints) -> Ints | Rows:
        time.sleep(PAUSE_S)
        return given


class LyingEngine:
    """Leaves to an honest engine all that a lie does not touch. Its `forward` is what tells the lie."""

    def __init__(self, honest: StageEngine) -> None:
        self._honest = honest

    def copy(self, src: int, dst: int) -> None:
        self._honest.copy(src, dst)

    def truncate(self, slot: int, n_rows: int) -> None:
        self._honest.truncate(slot, n_rows)

    def drop(self, slot: int) -> None:
        self._honest.drop(slot)

    def set_threads(self, n_threads: int) -> None:
        self._honest.set_threads(n_threads)

    def close(self) -> None:
        self._honest.close()


class FaultyEngine(LyingEngine):
    """An honest engine, and what a fault makes of it while the worker holds the seat to lie at."""

    def __init__(self, honest: StageEngine, fault: Fault, place: Place, ref: StageRef) -> None:
        super().__init__(honest)
        self._fault = fault
        self._place = place
        self._ref = ref
        self._is_last = ref.layers.end == ref.num_layers
        self._calls = 0

    def forward(self, x: Ints | Rows, slots: Ints, positions: Ints, want: Mask | None = None) -> Rows:
        if not self._place.lies_in(self._ref):
            return self._honest.forward(x, slots, positions, want)
        self._calls += 1
        if self._fault.is_omission:
            self._place.tell("", self._calls, "computes nothing")
        fed = self._fault.feed(x, positions)
        result = self._honest.forward(fed, slots, positions, want)
        altered = self._fault.alter(x, result, self._calls, is_last=self._is_last) if len(result) else result
        if not np.array_equal(fed, x) or not np.array_equal(altered, result):
            self._place.computed_falsely()
        return altered


class FaultyLoader(EngineLoader):
    """Loads honest engines, passes their self-test, and then plugs the fault in."""

    def __init__(self, honest: EngineLoader, fault: Fault, place: Place) -> None:
        self._honest = honest
        self._fault = fault
        self._place = place

    def load(self, ref: StageRef, file: StageFile, *, n_slots: int, ctx_per_slot: int) -> LoadedEngine:
        loaded = self._honest.load(ref, file, n_slots=n_slots, ctx_per_slot=ctx_per_slot)
        return replace(loaded, engine=FaultyEngine(loaded.engine, self._fault, self._place, ref))

    def load_trial(self) -> TrialStage:
        return self._honest.load_trial()
