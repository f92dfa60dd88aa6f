"""Engines that compute something else than the model says. Plugged in by constructor, in place of the honest loader."""

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import numpy as np

from services.worker.ports import EngineLoader, Ints, LoadedEngine, Mask, Rows, StageEngine, StageFile
from shared.contracts.messages import StageRef

SLIGHTLY = np.float32(1e-3)


class Fault(ABC):
    """Alters what an engine returns. `calls`: how many the stage has had, this one included."""

    def for_stage(self, ref: StageRef) -> "Fault":
        """What goes wrong at this stage."""
        return self

    @abstractmethod
    def alter(self, given: Ints | Rows, result: Rows, calls: int, *, is_last: bool) -> Rows:
        """`result`: hidden states float32 [rows, n_embd], or logits float32 [rows, n_vocab]."""


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


class Colluding(Fault):
    """A small error in every row of the stage that a file names by its first layer; none without the file. Nodes that
    share the file are a coalition that knows where it sits."""

    def __init__(self, agreement: Path) -> None:
        self._agreement = agreement

    def for_stage(self, ref: StageRef) -> Fault:
        return _AtStage(self._agreement, ref.layers.start)

    def alter(self, given: Ints | Rows, result: Rows, calls: int, *, is_last: bool) -> Rows:
        return result


class _AtStage(Fault):
    def __init__(self, agreement: Path, layer_start: int) -> None:
        self._agreement, self._layer_start = agreement, layer_start

    def alter(self, given: Ints | Rows, result: Rows, calls: int, *, is_last: bool) -> Rows:
        is_agreed = self._agreement.exists() and int(self._agreement.read_text()) == self._layer_start
        return WrongHidden().alter(given, result, calls, is_last=is_last) if is_agreed else result


class FaultyEngine:
    """An honest engine, and what a fault makes of its answers."""

    def __init__(self, honest: StageEngine, fault: Fault, *, is_last: bool) -> None:
        self._honest = honest
        self._fault = fault
        self._is_last = is_last
        self._calls = 0

    def forward(self, x: Ints | Rows, slots: Ints, positions: Ints, want: Mask | None = None) -> Rows:
        self._calls += 1
        result = self._honest.forward(x, slots, positions, want)
        return self._fault.alter(x, result, self._calls, is_last=self._is_last) if len(result) else result

    def copy(self, src: int, dst: int) -> None:
        self._honest.copy(src, dst)

    def drop(self, slot: int) -> None:
        self._honest.drop(slot)

    def set_threads(self, n_threads: int) -> None:
        self._honest.set_threads(n_threads)

    def close(self) -> None:
        self._honest.close()


class FaultyLoader(EngineLoader):
    """Loads honest engines, passes their self-test, and then plugs the fault in."""

    def __init__(self, honest: EngineLoader, fault: Fault) -> None:
        self._honest = honest
        self._fault = fault

    def load(self, ref: StageRef, file: StageFile, *, n_slots: int, ctx_per_slot: int) -> LoadedEngine:
        loaded = self._honest.load(ref, file, n_slots=n_slots, ctx_per_slot=ctx_per_slot)
        is_last = ref.layers.end == ref.num_layers
        return replace(loaded, engine=FaultyEngine(loaded.engine, self._fault.for_stage(ref), is_last=is_last))
