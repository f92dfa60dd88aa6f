from hypothesis import given
from hypothesis import strategies as st

from services.cli.domain.restart import (
    EXIT_WINDOW_S,
    LONGEST_DELAY_S,
    MAX_EXITS,
    RestartHistory,
    after_exit,
    exit_code_of,
)


def exits(*times_s: float) -> list[float | None]:
    """The delays decided after each exit of a process that starts again at once."""
    history, started_s, delays = RestartHistory(), 0.0, []
    for exited_s in times_s:
        decision = after_exit(history, started_s=started_s, exited_s=exited_s)
        history, started_s = decision.history, exited_s
        delays.append(decision.delay_s)
    return delays


def test_the_delay_doubles_with_each_quick_exit() -> None:
    assert exits(1, 2, 3, 4) == [0.5, 1.0, 2.0, 4.0]


def test_the_fifth_exit_within_two_minutes_is_the_last() -> None:
    assert exits(1, 2, 3, 4, 5)[-1] is None


def test_a_process_that_was_healthy_for_a_minute_starts_over_with_the_shortest_delay() -> None:
    assert exits(1, 2, 100) == [0.5, 1.0, 0.5]


def test_exits_longer_ago_than_the_window_do_not_count() -> None:
    assert exits(*(40.0 * n for n in range(1, 20)))[-1] is not None


def test_the_delay_has_a_cap() -> None:
    assert max(delay for delay in exits(*(35.0 * n for n in range(1, 12))) if delay is not None) == LONGEST_DELAY_S


@given(st.lists(st.floats(min_value=0, max_value=200), min_size=1, max_size=30))
def test_a_process_is_given_up_exactly_when_it_ended_too_often_within_the_window(gaps_s: list[float]) -> None:
    history, now_s, times_s = RestartHistory(), 0.0, []
    for gap_s in gaps_s:
        started_s, now_s = now_s, now_s + gap_s
        times_s.append(now_s)
        decision = after_exit(history, started_s=started_s, exited_s=now_s)
        recent = [at_s for at_s in times_s if now_s - at_s < EXIT_WINDOW_S]
        assert (decision.delay_s is None) == (len(recent) >= MAX_EXITS)
        history = decision.history
        if decision.delay_s is None:
            return


def test_the_exit_code_of_a_signal_is_what_a_shell_says() -> None:
    assert exit_code_of(-9) == 137


def test_a_service_that_left_without_an_error_has_failed_nevertheless() -> None:
    assert exit_code_of(0) == 1
    assert exit_code_of(3) == 3
