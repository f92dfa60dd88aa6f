"""A stage without a model: rows are hashes of their prefix, so that a test can decide what else changes them."""

import hashlib
from collections.abc import Callable

import numpy as np

from services.worker.engine.base import Ids, Mask, Rows


def nothing(_rows_in_call: int, _call: int) -> int:
    return 0


class HashSlots:
    """Slots whose rows depend on the prefix, and on what `also(rows in the call, number of the call)` returns."""

    def __init__(self, also: Callable[[int, int], int] = nothing) -> None:
        self._also = also
        self._prefixes: dict[int, list[bytes]] = {}
        self._calls = 0

    def forward(self, x: Ids | Rows, slots: Ids, positions: Ids, want: Mask | None = None) -> Rows:
        self._calls += 1
        rows = []
        for value, slot, position in zip(x, slots, positions, strict=True):
            prefix = self._prefixes.setdefault(int(slot), [])
            assert len(prefix) == position, "positions must continue where their slots end"
            prefix.append(value.tobytes())
            rows.append([_number(*prefix, str(self._also(len(x), self._calls)).encode())])
        found = np.array(rows, np.float32)
        return found if want is None else found[want]

    def truncate(self, slot: int, n_rows: int) -> None:
        del self._prefixes[slot][n_rows:]

    def drop(self, slot: int) -> None:
        self._prefixes.pop(slot, None)


def _number(*parts: bytes) -> int:
    """One that float32 holds exactly."""
    return int.from_bytes(hashlib.blake2b(b"|".join(parts), digest_size=3).digest())
