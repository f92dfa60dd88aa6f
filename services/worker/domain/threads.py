"""How many cores an engine call takes, and which: what was quickest here, for calls of that size.

More threads help big batches and hurt small ones (a barrier costs more than the work between two of them), and how
much depends on the machine and on what else runs there. The choice changes no bit on the exact profile (engine.md 7).
"""

import itertools
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

TRIES = 6  # calls with each of two counts, in turns, before they are judged: the machine is now slower, now quicker
KEPT = 8  # calls that make the estimate
BETTER = 0.95  # a count takes over when it needs less than this share of the time
EXPLORING_SHARE = 0.02  # of the time, at most, goes into looking whether another count is quicker by now
MIN_CALLS_BETWEEN = 50


@dataclass(frozen=True, slots=True)
class _Trial:
    """The count in use against another. Times are per row."""

    current: int
    other: int
    times_s: dict[int, list[float]]

    @property
    def next_threads(self) -> int:
        times_s = self.times_s
        return self.current if len(times_s[self.current]) < len(times_s[self.other]) else self.other

    @property
    def is_over(self) -> bool:
        return min(map(len, self.times_s.values())) >= TRIES


@dataclass(slots=True)
class _Size:
    """What is known of calls of about the same number of rows. Times are per row."""

    threads: int
    times_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    """The latest calls with `threads`."""
    estimates_s: dict[int, float] = field(default_factory=dict)
    """By count."""
    trial: _Trial | None = None
    calls_since: int = 0
    """The last trial."""
    allowance_s: float = 0.0

    @property
    def next_threads(self) -> int:
        return self.threads if self.trial is None else self.trial.next_threads


class ThreadChoice:
    """Compares the count in use with half and twice of it now and then.

    Starts with all the threads allowed, a single row with one: where several workers share the cores, a thread that has
    to be woken for each of a row's small operations makes the call up to three times longer.
    """

    def __init__(self) -> None:
        self._sizes: dict[tuple[int, int], _Size] = {}

    def choose(self, rows: int, limit: int) -> int:
        """The count for the next call of `rows` rows, in [1, limit]. Every choice is answered by `note`."""
        return self._size(rows, limit).next_threads

    def expected_s(self, rows: int, limit: int) -> float | None:
        """How long the next call of `rows` rows will take; None while nothing is known."""
        size = self._size(rows, limit)
        per_row_s = size.estimates_s.get(size.next_threads)
        return None if per_row_s is None else per_row_s * rows

    def has_settled(self, rows: int, limit: int) -> bool:
        """Whether the next call is no comparison, nor one of the first of a single row, whose one thread may be few."""
        size = self._size(rows, limit)
        return size.trial is None and (rows > 1 or len(size.times_s) >= TRIES)

    def note(self, rows: int, limit: int, threads: int, took_s: float) -> None:
        size = self._size(rows, limit)
        if size.trial is not None:
            size.trial.times_s[threads].append(took_s / rows)
            if size.trial.is_over:
                _judge(size, size.trial)
            return
        size.times_s.append(took_s / rows)
        size.estimates_s[threads] = _typical_s(size.times_s)
        size.calls_since += 1
        size.allowance_s += EXPLORING_SHARE * took_s
        self._maybe_try(size, rows, limit)

    def _maybe_try(self, size: _Size, rows: int, limit: int) -> None:
        if len(size.times_s) < TRIES:
            return
        for other in _neighbours(size.threads, limit):
            known_s = size.estimates_s.get(other)
            excess_s = 0.0 if known_s is None else TRIES * rows * (known_s - size.estimates_s[size.threads])
            is_due = known_s is None or (size.calls_since >= MIN_CALLS_BETWEEN and size.allowance_s >= excess_s)
            if is_due:
                size.trial = _Trial(size.threads, other, {size.threads: [], other: []})
                size.calls_since, size.allowance_s = 0, 0.0
                return

    def _size(self, rows: int, limit: int) -> _Size:
        key = (rows.bit_length(), limit)
        size = self._sizes.get(key)
        if size is None:
            size = self._sizes[key] = _Size(threads=1 if rows == 1 else limit)
        return size


def core_shares(cores: Sequence[int], n_threads: int) -> list[frozenset[int]]:
    """`cores` in `n_threads` disjoint runs, as even as can be; with fewer cores than threads everybody gets all."""
    if n_threads > len(cores):
        return [frozenset(cores)] * n_threads
    bounds = [len(cores) * index // n_threads for index in range(n_threads + 1)]
    return [frozenset(cores[start:end]) for start, end in itertools.pairwise(bounds)]


def _judge(size: _Size, trial: _Trial) -> None:
    typical_s = {threads: _typical_s(times_s) for threads, times_s in trial.times_s.items()}
    size.trial = None
    size.estimates_s.update(typical_s)
    if typical_s[trial.other] < BETTER * typical_s[trial.current]:
        size.threads = trial.other
    size.times_s = deque(trial.times_s[size.threads], maxlen=KEPT)


def _typical_s(times_s: Collection[float]) -> float:
    """The mean without the slowest: one slow call says nothing, but a count under which every third call waits for a
    core that somebody else has is a slow one, whatever the others take."""
    slowest_s = max(times_s)
    return (sum(times_s) - slowest_s) / (len(times_s) - 1) if len(times_s) > 1 else slowest_s


def _neighbours(threads: int, limit: int) -> tuple[int, ...]:
    """Half and twice as many, within [1, limit]."""
    fewer, more = threads // 2, min(limit, threads * 2)
    return tuple(count for count in (fewer, more) if count >= 1 and count != threads)
