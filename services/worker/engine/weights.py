"""What a stage's weights allow its self-test to promise.

The test compares a few rows. Where kernels round differently but seldom (Q6_K in a tiny model: one row in a hundred) it
may see no difference, and an honest node would be convicted later. So only types that give equal bits by the way the
library computes them, whatever the number of rows, are admitted as `exact`.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from services.worker.engine.base import EngineSettings
from services.worker.engine.self_test import SelfTestResult
from shared.domain.numerics import Profile
from shared.llama.gguf import read_gguf

EXACT_TYPES = frozenset({"Q4_0", "Q4_1", "Q8_0"})
MOST_SMALL_ROWS = 3  # from 4 rows on the library multiplies repacked weights by other kernels


def matrix_types(path: Path, *, is_last_stage: bool) -> frozenset[str]:
    """The types of the matrices that a stage multiplies by. Raises `BadModelFile`."""
    tensors = read_gguf(path).tensors.values()
    # The embedding is only looked up, but on the last stage it is the head.
    return frozenset(
        tensor.tensor_type.name
        for tensor in tensors
        if len(tensor.shape) > 1 and (is_last_stage or tensor.name != "token_embd.weight")
    )


def bounded(found: SelfTestResult, types: Iterable[str], settings: EngineSettings) -> SelfTestResult:
    """`found`, or less where the weights or the settings do not allow so much."""
    if found.profile is Profile.TOLERANT:
        return found
    if settings != EngineSettings():
        return replace(found, profile=Profile.DECODE_EXACT, small_rows=1)
    if EXACT_TYPES.issuperset(types):
        return found
    small_rows = min(found.small_rows or MOST_SMALL_ROWS, MOST_SMALL_ROWS)
    return replace(found, profile=Profile.DECODE_EXACT, small_rows=small_rows)
