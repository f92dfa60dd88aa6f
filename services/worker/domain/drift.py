"""By how much longer calls of one row take now than they did at a stage's trial. Those plans go by, and what they take
longer all calls do (0012)."""

import math
from collections.abc import Iterable

from shared.domain.measured import CallTime, Drift

HORIZON_S = 5.0
"""Of computing, after which a call has lost two thirds of its weight."""
FRESH_S = 600.0
"""After so long without a call, what the last ones took says nothing about now."""


class DriftMeter:
    """Of the calls of one row of one stage."""

    def __init__(self) -> None:
        self._took = self._expected = (0.0, 0.0)
        """Seconds: by the clock, and computed by the calling thread."""
        self._noted_at_s = -math.inf

    def note(self, took_s: float, took_cpu_s: float, expected: CallTime, *, now_s: float) -> None:
        kept = math.exp(-expected.seconds / HORIZON_S) if self._is_fresh(now_s) else 0.0
        self._noted_at_s = now_s
        self._took = self._took[0] * kept + took_s, self._took[1] * kept + took_cpu_s
        self._expected = self._expected[0] * kept + expected.seconds, self._expected[1] * kept + expected.cpu_s

    def _is_fresh(self, now_s: float) -> bool:
        return now_s - self._noted_at_s <= FRESH_S

    @staticmethod
    def of_all(meters: Iterable["DriftMeter"], *, now_s: float) -> Drift | None:
        """Of the calls of several stages together; None while there were none of late."""
        each = [meter for meter in meters if meter._is_fresh(now_s)]
        if not each:
            return None
        ratios = (sum(meter._took[i] for meter in each) / sum(meter._expected[i] for meter in each) for i in (0, 1))
        return Drift(*ratios)
