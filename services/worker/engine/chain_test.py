"""Does the chain of stages give the whole model's bits? The condition for admitting a model to be cut.

Run as a program in a process of its own, because a file the library dislikes may abort it:
`python -m services.worker.engine.chain_test WHOLE STAGE...` prints one JSON line {"equal": ..., "reason": ...} and ends
with 0 when equal, 1 when not. Any other end means the library gave up on the model.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from services.worker.engine.base import Ids, Rows
from services.worker.engine.llama_stage import LlamaModel, LlamaSlots, SlotsSpec
from services.worker.engine.self_test import fixed_ids
from shared.domain.errors import ButterflyError
from shared.llama.library import Library, load_library

N_PROMPT_ROWS = 32
N_NEW_TOKENS = 8


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    equal: bool
    reason: str
    """Empty when equal; else for people."""


def chain_equals_whole(library: Library, whole: Path, stages: Sequence[Path], *, n_threads: int = 1) -> ChainVerdict:
    """Run a fixed prompt and some greedy tokens through the whole model and through its stages; compare all logits.

    `stages`: files in order, the first with the embedding, the last with the head. One stage is the whole file
    itself. Holds all weights twice.
    """
    try:
        with ExitStack() as open_parts:
            reference = _Chain(library, [whole], n_threads, open_parts)
            chain = _Chain(library, stages, n_threads, open_parts)
            return _compare(reference, chain)
    except ButterflyError as error:
        return ChainVerdict(equal=False, reason=error.message)


def _compare(reference: "_Chain", chain: "_Chain") -> ChainVerdict:
    if chain.n_vocab != reference.n_vocab:
        return ChainVerdict(equal=False, reason=f"{chain.n_vocab} logits instead of {reference.n_vocab}")
    ids = fixed_ids(reference.n_vocab)[:N_PROMPT_ROWS]
    position = 0
    while position < N_PROMPT_ROWS + N_NEW_TOKENS:
        expected, found = reference.forward(ids, position), chain.forward(ids, position)
        if expected.tobytes() != found.tobytes():
            gap = float(np.abs(expected - found).max())
            what = "prompt" if position == 0 else "generated row"
            return ChainVerdict(
                equal=False,
                reason=f"the stages give other logits than the whole model ({what} at {position}, gap {gap:.3g})",
            )
        position += len(ids)
        ids = np.array([expected[-1].argmax()], np.int32)
    return ChainVerdict(equal=True, reason="")


class _Chain:
    """Stages in one process, one slot each; the whole model is a chain of one."""

    def __init__(self, library: Library, paths: Sequence[Path], n_threads: int, open_parts: ExitStack) -> None:
        self._stages: list[LlamaSlots] = []
        self.n_vocab = 0
        for index, path in enumerate(paths):
            model = LlamaModel(library, path)
            open_parts.callback(model.close)
            spec = SlotsSpec(
                is_first_stage=index == 0,
                is_last_stage=index == len(paths) - 1,
                n_slots=1,
                ctx_per_slot=N_PROMPT_ROWS + N_NEW_TOKENS,
                n_threads=n_threads,
                settings=model.default_settings(),
            )
            slots = LlamaSlots(model, spec)
            open_parts.callback(slots.close)
            self._stages.append(slots)
            self.n_vocab = model.n_vocab

    def forward(self, ids: Ids, start: int) -> Rows:
        """Logits of every row."""
        slot = np.zeros(len(ids), np.int32)
        positions = np.arange(start, start + len(ids), dtype=np.int32)
        rows: Ids | Rows = ids
        for stage in self._stages:
            rows = stage.forward(rows, slot, positions)
        return rows.astype(np.float32, copy=False)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="compare a model's stages with the whole model, bit for bit")
    parser.add_argument("whole", type=Path)
    parser.add_argument("stages", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args(arguments)
    verdict = chain_equals_whole(load_library(), parsed.whole, parsed.stages, n_threads=parsed.threads)
    sys.stdout.write(json.dumps(asdict(verdict)) + "\n")
    return 0 if verdict.equal else 1


if __name__ == "__main__":
    sys.exit(main())
