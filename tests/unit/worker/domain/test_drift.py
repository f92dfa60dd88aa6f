"""How much slower calls have become."""

import pytest

from services.worker.domain.drift import FRESH_S, HORIZON_S, DriftMeter
from shared.domain.measured import CallTime, Drift


def expected(seconds: float) -> CallTime:
    return CallTime(1, seconds, seconds / 2, 1)


def drift_of(*meters: DriftMeter) -> Drift:
    found = DriftMeter.of_all(meters, now_s=0.0)
    assert found is not None
    return found


def test_without_calls_there_is_none() -> None:
    assert DriftMeter.of_all([], now_s=0.0) is None
    assert DriftMeter.of_all([DriftMeter()], now_s=0.0) is None


def test_calls_count_by_how_long_they_take() -> None:
    meter = DriftMeter()
    meter.note_row(0.2, 0.05, expected(0.1), handling_s=None, now_s=0.0)
    meter.note_row(0.9, 0.45, expected(0.9), handling_s=None, now_s=0.0)
    assert drift_of(meter).wall == pytest.approx(1.1, abs=0.02)
    assert drift_of(meter).cpu == pytest.approx(1.0)


def test_what_was_long_ago_is_forgotten() -> None:
    meter = DriftMeter()
    meter.note_row(10.0, 10.0, expected(1.0), handling_s=None, now_s=0.0)
    for _ in range(int(6 * HORIZON_S)):
        meter.note_row(2.0, 0.5, expected(1.0), handling_s=None, now_s=0.0)
    assert drift_of(meter) == Drift(pytest.approx(2.0, abs=0.05), pytest.approx(1.0, abs=0.1))  # type: ignore[arg-type]


def test_after_long_without_a_call_nothing_is_known_of_now() -> None:
    meter = DriftMeter()
    meter.note_row(3.0, 3.0, expected(1.0), handling_s=None, now_s=0.0)
    assert DriftMeter.of_all([meter], now_s=FRESH_S) is not None
    later_s = 2 * FRESH_S
    assert DriftMeter.of_all([meter], now_s=later_s) is None
    meter.note_row(1.0, 0.5, expected(1.0), handling_s=None, now_s=later_s)
    assert DriftMeter.of_all([meter], now_s=later_s) == Drift(1.0, 1.0)


def test_stages_count_together() -> None:
    slow, quick = DriftMeter(), DriftMeter()
    slow.note_row(3.0, 0.5, expected(1.0), handling_s=None, now_s=0.0)
    quick.note_row(1.0, 0.5, expected(1.0), handling_s=None, now_s=0.0)
    assert drift_of(slow, quick).wall == pytest.approx(2.0)


def test_stages_that_were_dropped_count_where_nothing_is_known_of_those_that_are_held() -> None:
    held, dropped = DriftMeter(), DriftMeter()
    dropped.note_row(3.0, 0.5, expected(1.0), handling_s=None, now_s=0.0)
    dropped.note_chunk(4.0, 1.0, now_s=0.0)
    assert DriftMeter.of_all([held], [dropped], now_s=0.0) == Drift(3.0, 1.0, chunk=4.0)
    held.note_row(1.0, 0.5, expected(1.0), handling_s=None, now_s=0.0)
    assert DriftMeter.of_all([held], [dropped], now_s=0.0) == Drift(1.0, 1.0, chunk=4.0)


def test_calls_of_several_rows_are_told_apart() -> None:
    meter = DriftMeter()
    meter.note_batch(3.0, 1.0, now_s=0.0)
    assert drift_of(meter) == Drift(1.0, 1.0, batch=3.0)
    meter.note_row(2.0, 0.5, expected(1.0), handling_s=None, now_s=0.0)
    assert drift_of(meter) == Drift(2.0, 1.0, batch=3.0)


def test_chunks_are_told_apart_too() -> None:
    meter = DriftMeter()
    meter.note_chunk(4.0, 1.0, now_s=0.0)
    meter.note_row(2.0, 0.5, expected(1.0), handling_s=None, now_s=0.0)
    assert drift_of(meter) == Drift(2.0, 1.0, chunk=4.0)


def test_what_a_row_takes_beside_its_call_is_the_mean_of_those_that_did_not_wait() -> None:
    meter = DriftMeter()
    for handling_s in (0.001, None, 0.003):
        meter.note_row(0.001, 0.0005, expected(0.001), handling_s=handling_s, now_s=0.0)
    assert drift_of(meter).handling_s == pytest.approx(0.002, rel=0.01)
