"""How many cores an engine call takes: what was quickest here, for calls of that size.

More threads help big batches and hurt small ones (a barrier costs more than the work between two of them), and how
much depends on the machine and on what else runs there. The choice changes no bit on the exact profile (engine.md 7).
"""

import statistics
from collections import deque
from dataclasses import dataclass, field

TRIES = 3  # calls in a row with another count, before it is judged
KEPT = 5  # calls whose median is the estimate: one slow call says nothing
BETTER = 0.95  # a count takes over when it needs less than this share of the time
EXPLORING_SHARE = 0.02  # of the time, at most, goes into looking whether another count is quicker by now
MIN_CALLS_BETWEEN = 50


@dataclass(slots=True)
class _Size:
    """What is known of calls of about the same number of rows. Times are per row."""

    threads: int
    times_s: dict[int, deque[float]] = field(default_factory=dict)
    estimates_s: dict[int, float] = field(default_factory=dict)
    """Medians of `times_s`."""
    trying: int | None = None
    tries_left: int = 0
    calls_since: int = 0
    allowance_s: float = 0.0

    def add(self, threads: int, time_s: float) -> None:
        times_s = self.times_s.setdefault(threads, deque(maxlen=KEPT))
        times_s.append(time_s)
        self.estimates_s[threads] = statistics.median_low(times_s)


class ThreadChoice:
    """Looks at half and twice the best count now and then.

    Starts with all the threads allowed, a single row with one: where several workers share the cores, a thread that has
    to be woken for each of a row's small operations makes the call up to three times longer.
    """

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, int], _Size] = {}

    def choose(self, rows: int, limit: int) -> int:
        """The count for the next call of `rows` rows, in [1, limit]. Every choice is answered by `note`."""
        size = self._size(rows, limit)
        return size.threads if size.trying is None else size.trying

    def expected_s(self, rows: int, limit: int) -> float | None:
        """How long the next call of `rows` rows will take; None while nothing is known."""
        per_row_s = self._size(rows, limit).estimates_s.get(self.choose(rows, limit))
        return None if per_row_s is None else per_row_s * rows

    def note(self, rows: int, limit: int, threads: int, took_s: float) -> None:
        size = self._size(rows, limit)
        size.add(threads, took_s / rows)
        if threads == size.trying:
            size.tries_left -= 1
            if size.tries_left == 0:
                _judge(size)
        elif size.trying is None:
            size.calls_since += 1
            size.allowance_s += EXPLORING_SHARE * took_s
            self._maybe_try(size, rows, limit)

    def _maybe_try(self, size: _Size, rows: int, limit: int) -> None:
        best_s = size.estimates_s.get(size.threads)
        if best_s is None or len(size.times_s[size.threads]) < TRIES:
            return
        for other in _neighbours(size.threads, limit):
            known_s = size.estimates_s.get(other)
            excess_s = 0.0 if known_s is None else TRIES * rows * (known_s - best_s)
            is_due = known_s is None or (size.calls_since >= MIN_CALLS_BETWEEN and size.allowance_s >= excess_s)
            if is_due:
                size.trying, size.tries_left = other, TRIES
                size.times_s.pop(other, None)
                size.calls_since, size.allowance_s = 0, 0.0
                return

    def _size(self, rows: int, limit: int) -> _Size:
        key = (rows.bit_length(), limit)
        size = self._sizes.get(key)
        if size is None:
            size = self._sizes[key] = _Size(threads=1 if rows == 1 else limit)
        return size


def _judge(size: _Size) -> None:
    tried, best_s = size.trying, size.estimates_s.get(size.threads)
    size.trying = None
    tried_s = None if tried is None else size.estimates_s.get(tried)
    if tried is not None and tried_s is not None and best_s is not None and tried_s < BETTER * best_s:
        size.threads = tried


def _neighbours(threads: int, limit: int) -> tuple[int, ...]:
    """Half and twice as many, within [1, limit]."""
    fewer, more = threads // 2, min(limit, threads * 2)
    return tuple(count for count in (fewer, more) if count >= 1 and count != threads)
