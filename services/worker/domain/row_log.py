"""The hidden states that seats have passed on: where the next stage has lost them, they are sent there again."""

import numpy as np
from numpy.typing import NDArray

from shared.domain.errors import RowsNotKept

GROWTH_ROWS = 256  # so many more at a time: what has to be copied then is small beside what was computed

Hidden = NDArray[np.float32]


class RowLogs:
    """All logs of a worker, within one bound: a session that comes when it is reached goes without."""

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
        self._rows: Hidden | None = None
        self.num_rows = 0

    def extend(self, first: int, rows: Hidden) -> None:
        """Take over rows from position `first` on. A log that had no room for those before takes no more."""
        end = first + len(rows)
        if first == self.num_rows and self._has_room(end, rows.shape[1]) and self._rows is not None:
            self._rows[first:end] = rows
            self.num_rows = end

    def cut(self, num_rows: int) -> None:
        """Rows from `num_rows` on are not true any more."""
        self.num_rows = min(self.num_rows, num_rows)

    def rows(self, first: int, num_rows: int) -> Hidden:
        """Raises `RowsNotKept`."""
        if self._rows is None or first + num_rows > self.num_rows:
            raise RowsNotKept(f"rows {first} to {first + num_rows} were not kept, but {self.num_rows}")
        return self._rows[first : first + num_rows]

    def close(self) -> None:
        """Idempotent."""
        if self._rows is not None:
            self._logs.reserve(-self._rows.nbytes)
        self._rows, self.num_rows, self._max_rows = None, 0, 0

    def _has_room(self, end: int, width: int) -> bool:
        held = 0 if self._rows is None else len(self._rows)
        if end <= held:
            return True
        wanted = min(self._max_rows, -(-end // GROWTH_ROWS) * GROWTH_ROWS)
        if end > wanted or not self._logs.reserve((wanted - held) * width * 4):
            return False
        grown = np.empty((wanted, width), np.float32)
        if self._rows is not None:
            grown[: self.num_rows] = self._rows[: self.num_rows]
        self._rows = grown
        return True
