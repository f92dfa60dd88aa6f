"""By how much longer calls take now than at a stage's trial, and what a row takes beside them.

Predictions go by that (0012), and what calls of one row say moves a node's level (0011).
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from shared.domain.measured import CallTime, Drift

HORIZON_S = 5.0
"""Of computing, after which a call has lost two thirds of its weight."""
FRESH_S = 600.0
"""After so long without a call, what the last ones took says nothing about now."""


@dataclass(slots=True)
class _Ratio:
    """Of two sums over calls, the latest counting most."""

    above: float = 0.0
    below: float = 0.0
    noted_at_s: float = -math.inf

    def note(self, above: float, below: float, *, computed_s: float, now_s: float) -> None:
        kept = math.exp(-computed_s / HORIZON_S) if self.is_fresh(now_s) else 0.0
        self.above, self.below = self.above * kept + above, self.below * kept + below
        self.noted_at_s = now_s

    def is_fresh(self, now_s: float) -> bool:
        return now_s - self.noted_at_s <= FRESH_S


class DriftMeter:
    """Of the calls of one stage. Calls are beside what they took at the trial, in the number of threads that was
    quickest there."""

    def __init__(self) -> None:
        self._wall, self._cpu, self._handling, self._batch, self._chunk = (_Ratio() for _ in range(5))

    def note_row(
        self, took_s: float, took_cpu_s: float, expected: CallTime, *, handling_s: float | None, now_s: float
    ) -> None:
        """A call of one row. `handling_s`: beside the call; None where it had to wait for another one."""
        computed_s = expected.seconds
        self._wall.note(took_s, computed_s, computed_s=computed_s, now_s=now_s)
        self._cpu.note(took_cpu_s, expected.cpu_s, computed_s=computed_s, now_s=now_s)
        if handling_s is not None:
            self._handling.note(handling_s, 1, computed_s=computed_s, now_s=now_s)

    def note_batch(self, took_s: float, expected_s: float, *, now_s: float) -> None:
        """A call with a row of each of several sequences."""
        self._batch.note(took_s, expected_s, computed_s=expected_s, now_s=now_s)

    def note_chunk(self, took_s: float, expected_s: float, *, now_s: float) -> None:
        """A call with several rows of one sequence."""
        self._chunk.note(took_s, expected_s, computed_s=expected_s, now_s=now_s)

    @staticmethod
    def of_all(held: Collection["DriftMeter"], dropped: Collection["DriftMeter"] = (), *, now_s: float) -> Drift | None:
        """Of the calls of several stages together; None while there were none of late. Those of stages that were
        dropped count where there were none of a kind of the stages that are held."""

        def of_late(ratio_of: Callable[[DriftMeter], _Ratio]) -> float | None:
            for meters in (held, dropped):
                ratios = [ratio for meter in meters if (ratio := ratio_of(meter)).is_fresh(now_s)]
                if ratios:
                    return sum(each.above for each in ratios) / sum(each.below for each in ratios)
            return None

        wall, cpu = of_late(lambda meter: meter._wall), of_late(lambda meter: meter._cpu)
        batch, chunk = of_late(lambda meter: meter._batch), of_late(lambda meter: meter._chunk)
        if wall is None and batch is None and chunk is None:
            return None
        return Drift(
            wall=1.0 if wall is None else wall,
            cpu=1.0 if cpu is None else cpu,
            batch=batch,
            chunk=chunk,
            handling_s=of_late(lambda meter: meter._handling) or 0.0,
        )
