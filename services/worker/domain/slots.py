"""Which slot a new sequence gets, and when sequences move together.

libllama cuts a call into one piece per run of adjacent slots, so gaps cost time: four slots in three runs take 1.6
times as long as in one (engine.md 6.1).
"""

from collections.abc import Collection

_TOLERATED_RUNS_PER_ACTIVE = 1 / 8  # beside the first run; below this a move costs more than the gaps


def lowest_free_slot(used: Collection[int], n_slots: int) -> int | None:
    """The lowest of the slots [0, n_slots) that is not in `used`, or None when all are."""
    taken = set(used)
    return next((slot for slot in range(n_slots) if slot not in taken), None)


def count_runs(used: Collection[int]) -> int:
    """How many runs of adjacent slots `used` forms."""
    taken = set(used)
    return sum(1 for slot in taken if slot - 1 not in taken)


def compaction_move(used: Collection[int]) -> tuple[int, int] | None:
    """The (from, to) move that brings sequences closer, or None while the gaps are tolerable.

    Moves the highest sequence to the lowest gap, so that repeating it ends.
    """
    runs = count_runs(used)
    if runs <= 1 + len(set(used)) * _TOLERATED_RUNS_PER_ACTIVE:
        return None
    highest = max(used)
    gap = lowest_free_slot(used, highest)
    return None if gap is None else (highest, gap)
