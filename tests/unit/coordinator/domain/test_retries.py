"""What fails is tried less and less often, and not never."""

from services.coordinator.domain.retries import FIRST_WAIT_S, LONGEST_WAIT_S, Retries


def wait_s(failures: int) -> float:
    retries = Retries[str]()
    for _ in range(failures):
        retries.failed("a", now_s=0.0)
    return next(now_s for now_s in range(100_000) if retries.may_try("a", now_s=now_s))


def test_each_failure_in_a_row_doubles_the_wait_up_to_a_limit() -> None:
    assert [wait_s(failures) for failures in (0, 1, 2, 3)] == [0.0, FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S]
    assert wait_s(9) < wait_s(10) == LONGEST_WAIT_S == wait_s(5_000)


def test_what_succeeded_begins_anew() -> None:
    retries = Retries[str]()
    retries.failed("a", now_s=0.0)
    retries.failed("a", now_s=0.0)
    retries.succeeded("a")
    assert retries.may_try("a", now_s=0.0)
    retries.failed("a", now_s=0.0)
    assert retries.may_try("a", now_s=FIRST_WAIT_S)


def test_each_has_a_wait_of_its_own_and_may_be_forgotten() -> None:
    retries = Retries[str]()
    retries.failed("a", now_s=0.0)
    assert retries.may_try("b", now_s=0.0)
    retries.failed("b", now_s=0.0)
    retries.forget(lambda subject: subject == "a")
    assert [retries.may_try(subject, now_s=0.0) for subject in "ab"] == [True, False]
