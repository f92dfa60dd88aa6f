import math
import random
from collections.abc import Callable

import pytest

from services.metrics.domain.sketch import MAX_BUCKETS, QuantileSketch
from services.metrics.domain.windows import RateWindow, SketchWindow

MANY = 100_000


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.uniform(0.5, 2_000.0),
        lambda rng: rng.lognormvariate(3.0, 2.0),
        lambda rng: rng.paretovariate(1.1),
    ],
    ids=["uniform", "lognormal", "pareto"],
)
def test_quantiles_are_within_one_percent_of_the_exact_ones(draw: Callable[[random.Random], float]) -> None:
    rng = random.Random(20)
    values = [draw(rng) for _ in range(MANY)]
    sketch = QuantileSketch()
    for value in values:
        sketch.add(value)
    values.sort()
    for q in (0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0):
        exact = values[math.floor(q * (MANY - 1))]
        found = sketch.quantile(q)
        assert found is not None
        assert abs(found - exact) <= 0.01 * exact * (1 + 1e-9)
    assert sketch.count == MANY
    assert sketch.num_buckets <= MAX_BUCKETS


def test_memory_stays_bounded_over_any_range_and_large_quantiles_stay_exact() -> None:
    sketch = QuantileSketch()
    for exponent in range(-9, 30):
        for step in range(100):
            sketch.add(10.0**exponent * (1 + step / 10))
    assert sketch.num_buckets <= MAX_BUCKETS
    top = sketch.quantile(1.0)
    assert top is not None
    assert top == pytest.approx(1.09e30, rel=0.01)


def test_merged_sketches_answer_like_one_over_all_values() -> None:
    one, other, both = QuantileSketch(), QuantileSketch(), QuantileSketch()
    rng = random.Random(3)
    for number in range(2_000):
        value = rng.expovariate(0.01)
        (one if number % 2 else other).add(value)
        both.add(value)
    one.merge(other)
    assert one.count == both.count
    assert [one.quantile(q) for q in (0.1, 0.5, 0.99)] == [both.quantile(q) for q in (0.1, 0.5, 0.99)]


def test_of_no_values_there_is_no_quantile_and_zeros_count() -> None:
    sketch = QuantileSketch()
    assert sketch.quantile(0.5) is None
    assert sketch.mean() is None
    sketch.add(0.0)
    assert sketch.quantile(0.5) == 0.0


def test_a_window_forgets_what_is_older_than_its_retention() -> None:
    window = SketchWindow(retention_s=120)
    window.add(1.0, at_s=0)
    window.add(2.0, at_s=60)
    window.add(3.0, at_s=120)
    assert window.merged(now_s=125).count == 2
    assert window.merged(now_s=125, since_s=120).count == 1
    assert window.merged(now_s=10_000).count == 0


def test_a_rate_is_that_of_the_last_whole_minute() -> None:
    window = RateWindow()
    window.add(120, at_s=30)
    assert window.per_s(now_s=45) == 0
    assert window.per_s(now_s=61) == 2
    assert window.per_s(now_s=130) == 0
