"""By how much longer calls take now than at a stage's trial, and what a row takes beside them.

Predictions go by that (0012), and what calls of one row say moves a node's level (0011).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.domain.measured import CallTime, Drift

HORIZON_S = 5.0
"""Of computing, after which a call has lost two thirds of its weight."""
FRESH_S = 600.0
"""After so long without a call, what the last ones took says nothing about now."""


@dataclass(slots=True)
class _Sums:
    """Of calls, the latest counting most. Seconds."""

    took_s: float = 0.0
    took_cpu_s: float = 0.0
    expected_s: float = 0.0
    expected_cpu_s: float = 0.0
    handling_s: float = 0.0
    num_handled: float = 0.0
    noted_at_s: float = -math.inf

    def note(
        self, took_s: float, took_cpu_s: float, expected: CallTime, *, handling_s: float | None, now_s: float
    ) -> None:
        kept = math.exp(-expected.seconds / HORIZON_S) if self.is_fresh(now_s) else 0.0
        self.noted_at_s = now_s
        self.took_s = self.took_s * kept + took_s
        self.took_cpu_s = self.took_cpu_s * kept + took_cpu_s
        self.expected_s = self.expected_s * kept + expected.seconds
        self.expected_cpu_s = self.expected_cpu_s * kept + expected.cpu_s
        self.handling_s *= kept
        self.num_handled *= kept
        if handling_s is not None:
            self.handling_s += handling_s
            self.num_handled += 1

    def is_fresh(self, now_s: float) -> bool:
        return now_s - self.noted_at_s <= FRESH_S


class DriftMeter:
    """Of the calls of one stage."""

    def __init__(self) -> None:
        self._single, self._batch, self._chunk = _Sums(), _Sums(), _Sums()

    def note(
        self, took_s: float, took_cpu_s: float, expected: CallTime, *, handling_s: float | None, now_s: float
    ) -> None:
        """A call for one row of each of `expected.rows` sequences. `handling_s`: beside the call; None where it had to
        wait for another one."""
        sums = self._single if expected.rows == 1 else self._batch
        sums.note(took_s, took_cpu_s, expected, handling_s=handling_s, now_s=now_s)

    def note_chunk(self, took_s: float, took_cpu_s: float, expected: CallTime, *, now_s: float) -> None:
        """A call for `expected.rows` rows of one sequence."""
        self._chunk.note(took_s, took_cpu_s, expected, handling_s=None, now_s=now_s)

    @staticmethod
    def of_all(meters: Iterable["DriftMeter"], *, now_s: float) -> Drift | None:
        """Of the calls of several stages together; None while there were none of one row of late."""
        meters = list(meters)
        single = [meter._single for meter in meters if meter._single.is_fresh(now_s)]
        wall = _wall(single)
        if wall is None:
            return None
        num_handled = sum(each.num_handled for each in single)
        return Drift(
            wall=wall,
            cpu=sum(each.took_cpu_s for each in single) / sum(each.expected_cpu_s for each in single),
            batch=_wall([meter._batch for meter in meters if meter._batch.is_fresh(now_s)]),
            chunk=_wall([meter._chunk for meter in meters if meter._chunk.is_fresh(now_s)]),
            handling_s=sum(each.handling_s for each in single) / num_handled if num_handled else 0.0,
        )


def _wall(of_late: Sequence[_Sums]) -> float | None:
    return sum(each.took_s for each in of_late) / sum(each.expected_s for each in of_late) if of_late else None
