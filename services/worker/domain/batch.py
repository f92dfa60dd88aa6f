"""The rules a batch keeps before it may reach the engine's library, which aborts the process when they are broken."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.domain.errors import BadBatch, NoSlotSpace

Ints = npt.NDArray[np.int32]
Order = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one loaded stage can take."""

    takes_ids: bool
    """The first stage takes token ids, the others rows of hidden state."""
    n_embd: int
    n_vocab: int
    n_slots: int
    ctx_per_slot: int
    max_rows: int


def check_rows(x: npt.NDArray[np.generic], limits: BatchLimits) -> int:
    """The number of rows of `x`; raises `BadBatch` unless it is what this stage takes."""
    dtype, dimensions = (np.int32, 1) if limits.takes_ids else (np.float32, 2)
    if x.dtype != dtype or x.ndim != dimensions or not x.flags.c_contiguous:
        raise BadBatch(
            f"rows must be a contiguous {np.dtype(dtype)} array of {dimensions} dimensions, not {x.dtype} of {x.ndim}"
        )
    n = len(x)
    if not 1 <= n <= limits.max_rows:
        raise BadBatch(f"a batch has 1 to {limits.max_rows} rows, not {n}")
    if limits.takes_ids:
        if int(x.min()) < 0 or int(x.max()) >= limits.n_vocab:
            raise BadBatch(f"a token id is outside [0, {limits.n_vocab})")
    elif x.shape[1] != limits.n_embd:
        raise BadBatch(f"rows must be {limits.n_embd} wide, not {x.shape[1]}")
    elif not np.isfinite(x).all():
        raise BadBatch("a row holds a value that is not finite")
    return n


def check_places(slots: Ints, positions: Ints, n: int, lengths: Ints, limits: BatchLimits) -> Order | None:
    """The order that sorts the rows by slot, or None when they are in order.

    Sorted, because the library would cut an unsorted call into pieces and return its rows in another order.
    `lengths`: rows each slot holds. Raises `BadBatch`, `NoSlotSpace`.
    """
    for name, array in (("slots", slots), ("positions", positions)):
        if array.dtype != np.int32 or array.shape != (n,):
            raise BadBatch(f"{name} must be int32 [{n}], not {array.dtype} {list(array.shape)}")
    lowest, highest = int(slots.min()), int(slots.max())
    if lowest < 0 or highest >= limits.n_slots:
        raise BadBatch(f"a slot is outside [0, {limits.n_slots})")
    order: Order | None = None
    if lowest == highest:
        expected: Ints = np.arange(lengths[lowest], lengths[lowest] + n, dtype=np.int32)
    else:
        if not (slots[1:] > slots[:-1]).all():
            order = np.argsort(slots, kind="stable")
            if not (np.diff(slots[order]) > 0).all():
                raise BadBatch("a batch is one row of each of several slots, or consecutive rows of one slot")
        expected = lengths[slots]
    if not np.array_equal(positions, expected):
        raise BadBatch("positions must continue where their slots end")
    if int(expected.max()) >= limits.ctx_per_slot:
        raise NoSlotSpace(f"a slot holds {limits.ctx_per_slot} rows")
    return order


def check_wanted(want: npt.NDArray[np.bool_] | None, n: int, *, is_last_stage: bool) -> None:
    """Raises `BadBatch` unless `want` is None, or bool [n] on the last stage."""
    if want is None:
        return
    if not is_last_stage:
        raise BadBatch("only the last stage is asked for chosen rows")
    if want.dtype != np.bool_ or want.shape != (n,):
        raise BadBatch(f"want must be bool [{n}], not {want.dtype} {list(want.shape)}")
