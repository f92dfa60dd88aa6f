"""The engine without services: the whole model, and the same model as a chain of stages, in this process."""

import itertools
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.measure import Load, Rates
from services.worker.engine.base import StageSpec
from services.worker.engine.llama_engine import LlamaEngine
from shared.llama.cutting import cut_stage, open_model
from shared.llama.library import Library

CHUNK_ROWS = 64


class Chain:
    """Stages of one model one after the other; a chain of one is the whole model."""

    def __init__(self, library: Library, model: Path, cuts: list[int], folder: Path, *, slots: int, rows: int) -> None:
        """`cuts`: layer numbers from 0 to the number of layers; stage i is [cuts[i], cuts[i + 1])."""
        source = open_model(model)
        self._engines: list[LlamaEngine] = []
        for start, end in itertools.pairwise(cuts):
            path = folder / f"{start}-{end}.gguf"
            stage = cut_stage(source, start, end)
            stage.write_to(path)
            engine = LlamaEngine(library, now=time.monotonic, self_test_cache=None, cpu_name="")
            engine.load(
                StageSpec(
                    path=path,
                    stage_digest=stage.stage_digest(),
                    is_first_stage=start == 0,
                    is_last_stage=end == cuts[-1],
                    layer_start=start,
                    layer_end=end,
                    n_slots=slots,
                    ctx_per_slot=rows,
                    n_threads=2,
                )
            )
            self._engines.append(engine)

    def forward(
        self, ids: list[int], slots: list[int], positions: list[int], wanted: list[bool]
    ) -> npt.NDArray[np.float32]:
        """Logits float32 [wanted rows, n_vocab] of a batch that goes through all stages."""
        x: npt.NDArray[np.int32] | npt.NDArray[np.float32] = np.array(ids, np.int32)
        places = np.array(slots, np.int32), np.array(positions, np.int32)
        for engine in self._engines[:-1]:
            x = engine.forward(x, *places)
        return self._engines[-1].forward(x, *places, np.array(wanted))

    def measure(self, sequences: int, load: Load) -> Rates:
        """Prefill long prompts in chunks; then, on short ones, decode all sequences together, greedily."""
        started = time.perf_counter()
        self._prefill_all(sequences, load.long_prompt)
        prefilled = time.perf_counter()
        self._drop_all(sequences)
        tokens = self._prefill_all(sequences, load.short_prompt)
        began = time.perf_counter()
        for step in range(load.num_tokens):
            positions = [len(load.short_prompt) + step] * sequences
            logits = self.forward(tokens, list(range(sequences)), positions, [True] * sequences)
            tokens = [int(row.argmax()) for row in logits]
        decoded = time.perf_counter()
        self._drop_all(sequences)
        return Rates(
            prefill_tokens_per_s=sequences * len(load.long_prompt) / (prefilled - started),
            decode_tokens_per_s=sequences * load.num_tokens / (decoded - began),
        )

    def _prefill_all(self, sequences: int, prompt: list[int]) -> list[int]:
        """The first token of each sequence."""
        return [self._prefill(slot, prompt) for slot in range(sequences)]

    def _drop_all(self, sequences: int) -> None:
        for engine in self._engines:
            for slot in range(sequences):
                engine.drop(slot)

    def _prefill(self, slot: int, prompt: list[int]) -> int:
        token = -1
        for start in range(0, len(prompt), CHUNK_ROWS):
            ids = prompt[start : start + CHUNK_ROWS]
            last = start + len(ids) == len(prompt)
            wanted = [False] * (len(ids) - 1) + [last]
            logits = self.forward(ids, [slot] * len(ids), list(range(start, start + len(ids))), wanted)
            if last:
                token = int(logits[0].argmax())
        return token
