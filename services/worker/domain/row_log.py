"""The hidden states that seats have passed on: where the next stage has lost them, they are sent there again."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from shared.domain.errors import RowsNotKept
from shared.domain.hidden import FLOAT_BYTES

BLOCK_ROWS = 256

Hidden = NDArray[np.float32]


class RowLogs:
    """All logs of a worker, within one bound: a log that finds no more room gives up its own."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.held_bytes = 0

    def reserve(self, num_bytes: int) -> bool:
        """Whether there is room for so much more; a negative number gives back."""
        fits = self.held_bytes + num_bytes <= self._max_bytes
        if fits:
            self.held_bytes += num_bytes
        return fits


class RowLog:
    """Rows [0, num_rows) as one seat has passed them on, float32 [num_rows, n_embd]."""

    def __init__(self, logs: RowLogs, *, max_rows: int) -> None:
        self._logs = logs
        self._max_rows = max_rows
        self._blocks: list[Hidden] = []
        """BLOCK_ROWS each: what is here need not be copied for more."""
        self.num_rows = 0

    def extend(self, first: int, rows: Hidden) -> None:
        """Take over rows from position `first` on. A log with a gap, or without room, would be of no use: it closes."""
        end = first + len(rows)
        if first != self.num_rows or not self._has_room(end, rows.shape[1]):
            self.close()
            return
        taken = 0
        for piece in self._pieces(first, end):
            piece[:] = rows[taken : taken + len(piece)]
            taken += len(piece)
        self.num_rows = end

    def cut(self, num_rows: int) -> None:
        """Rows from `num_rows` on are not true any more."""
        self.num_rows = min(self.num_rows, num_rows)

    def rows(self, first: int, num_rows: int) -> Hidden:
        """Raises `RowsNotKept`."""
        end = first + num_rows
        if end > self.num_rows:
            raise RowsNotKept(f"rows {first} to {end} were not kept, but {self.num_rows}")
        return np.concatenate(list(self._pieces(first, end)))

    def close(self) -> None:
        """Idempotent."""
        self._logs.reserve(-sum(block.nbytes for block in self._blocks))
        self._blocks, self.num_rows, self._max_rows = [], 0, 0

    def _has_room(self, end: int, width: int) -> bool:
        while len(self._blocks) * BLOCK_ROWS < min(end, self._max_rows):
            if not self._logs.reserve(BLOCK_ROWS * width * FLOAT_BYTES):
                return False
            self._blocks.append(np.empty((BLOCK_ROWS, width), np.float32))
        return end <= self._max_rows

    def _pieces(self, first: int, end: int) -> Iterator[Hidden]:
        """Rows [first, end), block by block."""
        while first < end:
            block, start = divmod(first, BLOCK_ROWS)
            piece = self._blocks[block][start : start + end - first]
            yield piece
            first += len(piece)
