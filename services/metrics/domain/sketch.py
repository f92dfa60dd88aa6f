"""Quantiles of any number of values in bounded memory, each within 1 % of a true value.

Logarithmic buckets as in DDSketch (Masson, Rim, Lee: "DDSketch", VLDB 2019): bucket i holds the values in
(gamma^(i-1), gamma^i] with gamma = (1 + error) / (1 - error), and answers 2 gamma^i / (gamma + 1).
"""

import math

RELATIVE_ERROR = 0.01
MAX_BUCKETS = 2_048  # at 1 % they span 17 decimal orders of magnitude
SMALLEST = 1e-9  # what is below counts as zero

_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)


class QuantileSketch:
    """Takes values >= 0; sketches merge without loss."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self._zeros = 0
        self._buckets: dict[int, int] = {}

    @property
    def num_buckets(self) -> int:
        return len(self._buckets)

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        if value < SMALLEST:
            self._zeros += 1
            return
        index = math.ceil(math.log(value) / _LOG_GAMMA)
        self._buckets[index] = self._buckets.get(index, 0) + 1
        if len(self._buckets) > MAX_BUCKETS:
            self._collapse()

    def merge(self, other: "QuantileSketch") -> None:
        self.count += other.count
        self.total += other.total
        self._zeros += other._zeros
        for index, count in other._buckets.items():
            self._buckets[index] = self._buckets.get(index, 0) + count
        while len(self._buckets) > MAX_BUCKETS:
            self._collapse()

    def quantile(self, q: float) -> float | None:
        """The value below which the share `q` (0 to 1) of all values lies; None of no values."""
        if not self.count:
            return None
        rank = q * (self.count - 1)
        seen = self._zeros
        if rank < seen:
            return 0.0
        index = 0
        for index in sorted(self._buckets):
            seen += self._buckets[index]
            if rank < seen:
                break
        return 2 * _GAMMA**index / (_GAMMA + 1)

    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def _collapse(self) -> None:
        """Give up precision where it matters least: among the smallest values."""
        lowest, second = sorted(self._buckets)[:2]
        self._buckets[second] += self._buckets.pop(lowest)
