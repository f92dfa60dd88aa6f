"""How fast answers came."""

import pytest

from services.cli.domain.progress import Progress, all_s, median_first_token_s, steady_tokens_per_s


def even(asked_s: float, first_s: float, per_s: float, *, count: int = 80, step: int = 8) -> Progress:
    """Tokens at an even rate, told in steps."""
    tokens = [(asked_s + first_s, 1)]
    tokens += [(asked_s + first_s + (told - 1) / per_s, told) for told in range(1 + step, count + 1, step)]
    return Progress(asked_s, tuple(tokens), tokens[-1][0] + 0.1)


def test_the_rate_of_one_answer_is_its_tokens_by_their_time() -> None:
    assert steady_tokens_per_s([even(0.0, 1.0, 20.0)]) == pytest.approx(20.0)


def test_rates_of_answers_that_run_together_add_up() -> None:
    assert steady_tokens_per_s([even(0.0, 1.0, 20.0), even(0.2, 0.9, 10.0)]) == pytest.approx(30.0)


def test_slow_ends_do_not_count() -> None:
    tokens = ((0.5, 1), (5.0, 8), (6.0, 18), (7.0, 28), (8.0, 38), (9.0, 48), (30.0, 50))
    assert steady_tokens_per_s([Progress(0.0, tokens, 30.0)]) == pytest.approx(10.0)


def test_answers_that_came_one_after_another_have_no_rate() -> None:
    assert steady_tokens_per_s([even(0.0, 1.0, 20.0), even(100.0, 1.0, 20.0)]) is None


def test_an_answer_that_came_at_once_has_no_rate() -> None:
    assert steady_tokens_per_s([Progress(0.0, ((1.0, 40),), 1.0)]) is None


def test_the_first_token_is_the_median_and_the_end_the_last() -> None:
    answers = [even(0.0, 1.0, 20.0), even(0.0, 2.0, 20.0), even(0.0, 9.0, 20.0)]
    assert median_first_token_s(answers) == 2.0
    assert all_s(answers) == pytest.approx(answers[2].end_s)
