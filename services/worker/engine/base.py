"""The engine: what runs one stage of a model. The docstrings are the contract; engine.md section 2 explains it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.domain.numerics import Profile

Ids = npt.NDArray[np.int32]
Rows = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class KvType(StrEnum):
    Q8_0 = "q8_0"
    F16 = "f16"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings that change bits, hence are part of the numerics class. The defaults are the exact profile's."""

    flash_attention: bool = True
    kv_type: KvType = KvType.Q8_0


@dataclass(frozen=True, slots=True)
class StageSpec:
    path: Path
    """The stage file; its digest was checked by whoever fetched it."""
    stage_digest: str
    is_first_stage: bool
    is_last_stage: bool
    layer_start: int
    layer_end: int
    """Layers [layer_start, layer_end) of the model."""
    n_slots: int
    """Sequences held at once."""
    ctx_per_slot: int
    """Rows each slot holds."""
    n_threads: int
    settings: EngineSettings | None = None
    """None: the exact settings, or the fallback for models whose head size rules them out."""


@dataclass(frozen=True, slots=True)
class StageInfo:
    n_embd: int
    n_vocab: int | None
    """Known to the first and the last stage only."""
    numerics_class: str
    profile: Profile
    """Found by the self-test, never believed from a file."""
    small_rows: int | None
    """Most rows per call, of one sequence or one of each of several, that agree with one row per call; None when any
    number does (`exact`)."""
    self_test_digest: str
    """Nodes are in one class for a stage only if class string and this digest are equal."""
    kv_bytes_per_row: int
    load_s: float


class Engine(ABC):
    """One instance is one stage, used by one thread at a time; no two calls may overlap.

    A slot holds one sequence. Positions are absolute, start at 0, and continue exactly where the slot ends.
    """

    @abstractmethod
    def load(self, spec: StageSpec) -> StageInfo:
        """Open the stage file and find its profile by the self-test.

        Raises `UnsupportedModel`, `SelfTestFailed`, `OutOfMemory`, `AbiMismatch`; the engine is then closed.
        """

    @abstractmethod
    def forward(self, x: Ids | Rows, slots: Ids, positions: Ids, want: Mask | None = None) -> Rows:
        """Run a batch: either one row of each of several slots, or consecutive rows of one slot.

        x: int32 [n] token ids (first stage) or float32 [n, n_embd] hidden states, C-contiguous.
        slots, positions: int32 [n]. want: bool [n], the rows whose logits are returned; last stage only, where
        None wants every row.
        Returns hidden states float32 [n, n_embd] in the order given, or on the last stage logits
        float32 [want.sum(), n_vocab], unscaled. The array belongs to the caller.

        All or nothing: after an error every slot is as long as before. Raises `BadBatch` (a rule of this
        docstring is broken, or x or the result is not finite), `NoSlotSpace` (a slot is full), `EngineFault`
        (reload the stage).
        """

    @abstractmethod
    def truncate(self, slot: int, n_rows: int) -> None:
        """Keep rows [0, n_rows) of a slot. Raises `BadSlot` when it holds fewer."""

    @abstractmethod
    def drop(self, slot: int) -> None:
        """Empty a slot. Raises `BadSlot` when there is no such slot."""

    @abstractmethod
    def copy(self, src: int, dst: int) -> None:
        """Copy a whole sequence to an empty slot. Raises `BadSlot`."""

    @abstractmethod
    def export(self, slot: int) -> bytes:
        """A slot's sequence, for `import_` on the same node. Raises `BadSlot`."""

    @abstractmethod
    def import_(self, slot: int, blob: bytes) -> int:
        """Fill an empty slot from `export`; returns its number of rows.

        Raises `WrongClass` (other numerics or other stage), `BadBlob`, `BadSlot`.
        """

    @abstractmethod
    def set_threads(self, n_threads: int) -> None:
        """Use so many threads from the next call on. Changes no bit on `exact`."""

    @abstractmethod
    def close(self) -> None:
        """Free everything. Idempotent."""
