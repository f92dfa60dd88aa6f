import httpx
import pytest

from shared.contracts.problem import Problem
from shared.domain.errors import (
    ButterflyError,
    DeadlineExceeded,
    ModelNotFound,
    NoCapacity,
    PeerUnavailable,
    ProtocolViolation,
    QueueFull,
    QuotaExceeded,
    RegistryUnavailable,
    ServerDraining,
    WrongServiceToken,
)
from shared.resilience.breaker import Outcome
from shared.resilience.outcomes import MAX_DETAIL, CallFailed, failed_transport, outcome_of, refusal


def answered(error: ButterflyError, status: int, *, had_deadline: bool = False) -> CallFailed:
    problem = Problem(
        type="urn:x", title="x", status=status, detail="why", code=error.code, retryable=error.retryable, param="p"
    )
    body = problem.model_dump_json().encode()
    return refusal("scheduler", "/tasks", status, body, had_deadline=had_deadline)


@pytest.mark.parametrize(
    ("error", "status", "outcome", "may_pass"),
    [
        (ModelNotFound(""), 404, Outcome.SUCCESS, False),
        (QuotaExceeded(""), 429, Outcome.NEUTRAL, False),
        (NoCapacity(""), 503, Outcome.SUCCESS, False),
        (QueueFull(""), 503, Outcome.SUCCESS, False),
        (ServerDraining(""), 503, Outcome.FAILURE, True),
        (RegistryUnavailable(""), 503, Outcome.NEUTRAL, False),
        (PeerUnavailable(""), 503, Outcome.NEUTRAL, False),
        (ButterflyError(""), 500, Outcome.FAILURE, False),
        (DeadlineExceeded(""), 504, Outcome.FAILURE, False),
    ],
)
def test_an_answer_gives_back_its_error_and_says_how_the_peer_is(
    error: ButterflyError, status: int, outcome: Outcome, may_pass: bool
) -> None:
    failed = answered(error, status)
    assert type(failed.error) is type(error)
    assert failed.error.message == "why"
    assert failed.error.param == "p"
    assert (failed.outcome, failed.may_pass) == (outcome, may_pass)


def test_a_refused_service_token_is_told_to_the_operator_and_to_callers_as_an_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = answered(WrongServiceToken(""), 401)
    assert type(failed.error) is PeerUnavailable
    assert (failed.outcome, failed.may_pass) == (Outcome.SUCCESS, False)
    (told,) = caplog.records
    assert (told.message, told.levelname, told.__dict__["peer"]) == ("service_token_refused", "ERROR", "scheduler")


def test_a_504_because_of_the_callers_own_deadline_is_neutral() -> None:
    assert answered(DeadlineExceeded(""), 504, had_deadline=True).outcome is Outcome.NEUTRAL


def test_a_peer_cannot_say_endlessly_much() -> None:
    problem = Problem(type="", title="", status=503, detail="x" * 1_000_000, code=NoCapacity.code, retryable=True)
    failed = refusal("worker", "/messages", 503, problem.model_dump_json().encode(), had_deadline=False)
    assert len(failed.error.message) == MAX_DETAIL


def test_an_unexplained_503_counts_against_the_peer() -> None:
    failed = refusal("scheduler", "/tasks", 503, b"Service Unavailable", had_deadline=False)
    assert isinstance(failed.error, PeerUnavailable)
    assert (failed.outcome, failed.may_pass) == (Outcome.FAILURE, True)


def test_an_unexplained_4xx_breaks_the_contract() -> None:
    failed = refusal("scheduler", "/tasks", 418, b"teapot", had_deadline=False)
    assert isinstance(failed.error, ProtocolViolation)
    assert failed.outcome is Outcome.SUCCESS


def test_a_time_out_with_an_adequate_limit_counts_and_one_by_the_own_deadline_does_not() -> None:
    error = httpx.ReadTimeout("")
    counted = failed_transport("worker", error, own_deadline=False)
    assert (type(counted.error), counted.outcome) == (PeerUnavailable, Outcome.FAILURE)
    own = failed_transport("worker", error, own_deadline=True)
    assert (type(own.error), own.outcome) == (DeadlineExceeded, Outcome.NEUTRAL)


def test_a_full_pool_of_our_own_says_nothing_of_the_peer() -> None:
    failed = failed_transport("worker", httpx.PoolTimeout(""), own_deadline=False)
    assert (failed.outcome, failed.may_pass) == (Outcome.NEUTRAL, True)


def test_an_error_raised_on_our_side_says_nothing_of_the_peer() -> None:
    assert outcome_of(ZeroDivisionError()) is Outcome.NEUTRAL
