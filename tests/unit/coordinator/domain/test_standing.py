"""How long odd nodes are kept away."""

from services.coordinator.domain.standing import (
    FIRST_QUARANTINE_S,
    GOOD_FOR_S,
    LONGEST_QUARANTINE_S,
    Standing,
    quarantined,
)
from tests.fakes.identities import N1

EVICTED = Standing(N1, is_evicted=True, reason="lied", since_s=0.0, evidence_id="e1")


def next_one(before: Standing | None, wall_s: float, *, until_reinstated: bool = False) -> Standing:
    return quarantined(before, N1, reason="odd", address="", wall_s=wall_s, until_reinstated=until_reinstated)


def end_of(standing: Standing) -> float:
    assert standing.until_s is not None
    return standing.until_s


def test_each_quarantine_in_a_row_is_twice_as_long_up_to_an_hour() -> None:
    lengths, standing, now_s = [], None, 1_000.0
    for _ in range(8):
        standing = next_one(standing, now_s)
        lengths.append(end_of(standing) - now_s)
        now_s = end_of(standing) + 1
    assert lengths == [60, 120, 240, 480, 960, 1_920, 3_600, 3_600]


def test_a_quarantine_after_a_good_day_is_short_again() -> None:
    second = next_one(next_one(None, 0.0), 100.0)
    assert end_of(second) == 100 + 2 * FIRST_QUARANTINE_S
    third = next_one(second, end_of(second) + GOOD_FOR_S)
    assert (third.times, end_of(third) - third.since_s) == (1, FIRST_QUARANTINE_S)


def test_a_hundred_quarantines_are_no_longer_than_the_longest() -> None:
    before = Standing(N1, is_evicted=False, reason="odd", since_s=0.0, until_s=10.0, times=2_000)
    assert end_of(next_one(before, 11.0)) == 11.0 + LONGEST_QUARANTINE_S


def test_a_quarantine_that_holds_is_not_begun_again() -> None:
    standing = next_one(None, 0.0)
    assert next_one(standing, 30.0) is standing


def test_an_operator_makes_a_quarantine_last() -> None:
    lasting = next_one(next_one(None, 0.0), 30.0, until_reinstated=True)
    assert lasting.until_s is None
    assert lasting.holds(1e12)
    assert next_one(lasting, 60.0) is lasting


def test_no_quarantine_takes_the_place_of_an_eviction() -> None:
    assert next_one(EVICTED, 1e12) is EVICTED
    assert next_one(EVICTED, 1e12, until_reinstated=True) is EVICTED
