"""Phi accrual: suspicion grows with silence, and slower where heartbeats come unevenly."""

import math

import pytest

from services.coordinator.domain.suspicion import SUSPECT_AT, Rhythm

EVEN = Rhythm(0.5)


def uneven() -> Rhythm:
    rhythm = EVEN
    for _ in range(50):
        rhythm = rhythm.after(0.2).after(0.9)
    return rhythm


def test_half_of_all_beats_come_later_than_the_mean() -> None:
    assert EVEN.phi(0.5) == pytest.approx(math.log10(2))


def test_phi_follows_the_normal_distribution() -> None:
    # 1.2816 standard deviations above the mean lie 10 %, 2.3263 lie 1 %
    assert EVEN.phi(0.5 + 0.12816) == pytest.approx(1, abs=1e-3)
    assert EVEN.phi(0.5 + 0.23263) == pytest.approx(2, abs=1e-3)


def test_a_node_that_beats_evenly_is_suspect_after_one_missed_beat_and_a_bit() -> None:
    assert EVEN.phi(1.0) < SUSPECT_AT < EVEN.phi(1.1)


def test_a_node_that_beats_unevenly_is_given_longer() -> None:
    assert uneven().phi(1.1) < SUSPECT_AT


def test_a_node_that_beats_evenly_again_is_soon_measured_by_that() -> None:
    rhythm = uneven()
    for _ in range(60):
        rhythm = rhythm.after(0.5)
    assert rhythm.phi(1.2) > SUSPECT_AT


def test_endless_silence_is_endlessly_suspicious() -> None:
    assert EVEN.phi(1e6) == math.inf
