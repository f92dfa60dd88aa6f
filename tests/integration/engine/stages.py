"""Stages of a model in one process, for the engine's tests."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from services.worker.engine.base import EngineSettings, Ids, Mask, Rows
from services.worker.engine.llama_engine import LlamaEngine
from services.worker.engine.llama_stage import LlamaModel, LlamaSlots, SlotsSpec
from services.worker.engine.self_test import SelfTestCache
from shared.llama.cutting import cut_stage, open_model
from shared.llama.library import load_library


def write_stages(model: Path, bounds: Sequence[int], folder: Path) -> list[Path]:
    """Stage files for the layer ranges between neighbouring `bounds`."""
    opened = open_model(model)
    paths = []
    for start, end in pairwise(bounds):
        path = folder / f"{model.stem}-{start}-{end}.gguf"
        if not path.exists():
            cut_stage(opened, start, end).write_to(path)
        paths.append(path)
    return paths


def make_engine(cache: SelfTestCache | None = None, cpu_name: str = "test") -> LlamaEngine:
    return LlamaEngine(load_library(), now=time.monotonic, self_test_cache=cache, cpu_name=cpu_name)


def ints(values: Sequence[int] | int) -> Ids:
    return np.atleast_1d(np.asarray(values, np.int32))


@dataclass
class Chain:
    """Stages one after the other; a chain of one is the whole model."""

    stages: list[tuple[LlamaModel, LlamaSlots]]

    @classmethod
    def open(
        cls, paths: Sequence[Path], *, n_slots: int = 4, ctx: int = 256, settings: EngineSettings | None = None
    ) -> "Chain":
        stages = []
        for index, path in enumerate(paths):
            model = LlamaModel(load_library(), path)
            spec = SlotsSpec(
                is_first_stage=index == 0,
                is_last_stage=index == len(paths) - 1,
                n_slots=n_slots,
                ctx_per_slot=ctx,
                n_threads=1,
                settings=settings or model.default_settings(),
            )
            stages.append((model, LlamaSlots(model, spec)))
        return cls(stages)

    def forward(self, ids: Ids, slots: Ids, positions: Ids, want: Mask | None = None) -> Rows:
        """Logits of the wanted rows."""
        rows: Ids | Rows = ids
        for _, stage in self.stages[:-1]:
            rows = stage.forward(rows, slots, positions)
        return self.stages[-1][1].forward(rows, slots, positions, want)

    def prefill(self, ids: Sequence[int], slot: int, *, chunk: int = 64) -> Rows:
        """Run a prompt from the slot's end in chunks; logits of its last row."""
        start = self.stages[0][1].length(slot)
        row = np.empty(0, np.float32)
        for at in range(0, len(ids), chunk):
            part = ints(ids[at : at + chunk])
            want = np.zeros(len(part), np.bool_)
            want[-1] = True
            positions = np.arange(start + at, start + at + len(part), dtype=np.int32)
            row = self.forward(part, np.full(len(part), slot, np.int32), positions, want)
        return row

    def step(self, ids: Sequence[int], slots: Sequence[int]) -> Rows:
        """One row of each slot; logits of each."""
        lengths = [self.stages[0][1].length(slot) for slot in slots]
        return self.forward(ints(ids), ints(slots), ints(lengths))

    def greedy(self, prompt: Sequence[int], slot: int, count: int) -> list[int]:
        found = [int(self.prefill(prompt, slot)[0].argmax())]
        while len(found) < count:
            found.append(int(self.step([found[-1]], [slot])[0].argmax()))
        return found

    def drop(self, slot: int) -> None:
        for _, stage in self.stages:
            stage.drop(slot)

    def close(self) -> None:
        for model, stage in self.stages:
            stage.close()
            model.close()
