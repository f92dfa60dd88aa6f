import itertools
import random
from collections.abc import Callable
from statistics import mode

import pytest

from services.worker.domain.threads import TRIES, ThreadChoice, core_shares

Cost = Callable[[int, int], float]
"""Seconds of a call, by rows and threads."""


def run(choice: ThreadChoice, cost: Cost, *, rows: int, limit: int, calls: int) -> tuple[list[int], float]:
    """The counts chosen, and the time all calls took."""
    chosen, total_s = [], 0.0
    for _ in range(calls):
        threads = choice.choose(rows, limit)
        took_s = cost(rows, threads)
        choice.note(rows, limit, threads, took_s)
        chosen.append(threads)
        total_s += took_s
    return chosen, total_s


def barriers(rows: int, threads: int) -> float:
    """Work that can be shared, and a barrier that costs more with every thread."""
    return 0.001 * rows / threads + 0.003 * threads


def test_the_first_call_takes_all_threads_allowed_but_a_single_row_one() -> None:
    assert [ThreadChoice().choose(rows, 8) for rows in (1, 2, 64)] == [1, 8, 8]


@pytest.mark.parametrize(("rows", "limit", "best"), [(1, 2, 1), (1, 16, 1), (16, 16, 2), (64, 16, 4), (64, 3, 3)])
def test_calls_settle_on_the_quickest_count(rows: int, limit: int, best: int) -> None:
    chosen, _ = run(ThreadChoice(), barriers, rows=rows, limit=limit, calls=400)
    assert chosen[-1] == best
    assert all(1 <= threads <= limit for threads in chosen)


def test_large_and_small_calls_are_judged_apart() -> None:
    choice = ThreadChoice()
    small, _ = run(choice, barriers, rows=1, limit=4, calls=100)
    large, _ = run(choice, barriers, rows=64, limit=4, calls=100)
    assert (mode(small), mode(large)) == (1, 4)


def test_looking_for_a_better_count_costs_little() -> None:
    calls = 5_000
    _, total_s = run(ThreadChoice(), barriers, rows=1, limit=8, calls=calls)
    assert total_s < 1.05 * calls * barriers(1, 1)


def test_one_slow_call_changes_nothing() -> None:
    choice = ThreadChoice()
    run(choice, barriers, rows=1, limit=2, calls=100)
    choice.note(1, 2, choice.choose(1, 2), 1.0)
    chosen, _ = run(choice, barriers, rows=1, limit=2, calls=20)
    assert chosen.count(1) >= 20 - TRIES  # one comparison at most


def test_the_choice_follows_a_machine_that_changes() -> None:
    choice = ThreadChoice()
    run(choice, barriers, rows=16, limit=2, calls=100)
    assert choice.choose(16, 2) == 2
    run(choice, lambda rows, threads: 0.01 * threads, rows=16, limit=2, calls=600)
    assert choice.choose(16, 2) == 1


def test_noise_does_not_drive_it_away_from_the_best_for_long() -> None:
    chance = random.Random(4)
    choice = ThreadChoice()
    chosen, _ = run(
        choice, lambda rows, threads: barriers(rows, threads) * chance.uniform(0.8, 1.6), rows=1, limit=4, calls=4_000
    )
    assert chosen.count(1) > 0.85 * len(chosen)


def test_comparisons_and_the_first_calls_of_a_single_row_are_told_apart() -> None:
    choice = ThreadChoice()
    settled: list[bool] = []
    for _ in range(4 * TRIES):
        settled.append(choice.has_settled(1, 2))
        threads = choice.choose(1, 2)
        choice.note(1, 2, threads, barriers(1, threads))
    assert settled == [False] * 3 * TRIES + [True] * TRIES
    assert choice.has_settled(64, 2)


def test_a_count_whose_calls_stall_often_is_a_slow_one() -> None:
    choice = ThreadChoice()
    calls = itertools.count()

    def stalls(_: int, threads: int) -> float:
        return 0.010 if threads == 1 else 0.024 if next(calls) % 3 == 0 else 0.008

    chosen, _ = run(choice, stalls, rows=1, limit=2, calls=2_000)
    assert chosen.count(1) > 0.9 * len(chosen)


def test_what_a_call_will_take_is_known_after_the_first() -> None:
    choice = ThreadChoice()
    assert choice.expected_s(1, 1) is None
    choice.note(1, 1, 1, 0.003)
    assert choice.expected_s(1, 1) == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("cores", "n_threads", "shares"),
    [
        ([0, 1], 2, [{0}, {1}]),
        ([0, 1, 2, 3, 4], 2, [{0, 1}, {2, 3, 4}]),
        ([3, 5, 9], 1, [{3, 5, 9}]),
        ([4, 6], 3, [{4, 6}] * 3),
    ],
)
def test_threads_share_the_cores_without_overlap(cores: list[int], n_threads: int, shares: list[set[int]]) -> None:
    assert core_shares(cores, n_threads) == shares
