"""What happened lately, kept per minute and forgotten after a while."""

from services.metrics.domain.sketch import QuantileSketch

MINUTE_S = 60


class SketchWindow:
    """One sketch per minute over the last `retention_s` seconds."""

    def __init__(self, retention_s: int) -> None:
        self._keep_minutes = max(1, retention_s // MINUTE_S)
        self._sketches: dict[int, QuantileSketch] = {}

    def add(self, value: float, *, at_s: float) -> None:
        minute = int(at_s // MINUTE_S)
        sketch = self._sketches.get(minute)
        if sketch is None:
            sketch = self._sketches[minute] = QuantileSketch()
            _forget(self._sketches, before=minute - self._keep_minutes + 1)
        sketch.add(value)

    def merged(self, *, now_s: float, since_s: float = 0.0) -> QuantileSketch:
        """All values of the window that are not older than the minute of `since_s`."""
        newest = int(now_s // MINUTE_S)
        oldest = max(newest - self._keep_minutes + 1, int(since_s // MINUTE_S))
        merged = QuantileSketch()
        for minute, sketch in self._sketches.items():
            if oldest <= minute <= newest:
                merged.merge(sketch)
        return merged


class RateWindow:
    """Sums of the running minute and of the one before."""

    def __init__(self) -> None:
        self._sums: dict[int, float] = {}

    def add(self, amount: float, *, at_s: float) -> None:
        minute = int(at_s // MINUTE_S)
        self._sums[minute] = self._sums.get(minute, 0.0) + amount
        _forget(self._sums, before=minute - 1)

    def per_s(self, *, now_s: float) -> float:
        """Mean rate of the last whole minute."""
        return self._sums.get(int(now_s // MINUTE_S) - 1, 0.0) / MINUTE_S


def _forget(kept: dict[int, QuantileSketch] | dict[int, float], *, before: int) -> None:
    for minute in [minute for minute in kept if minute < before]:
        del kept[minute]
