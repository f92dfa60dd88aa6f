import pytest

from shared.domain import errors
from shared.domain.errors import ButterflyError
from shared.runtime.statuses import MethodNotAllowed, RequestTimeout, ValidationFailed, retry_after, status_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidJson(""), 400),
        (errors.EmptyInput(""), 422),
        (ValidationFailed(""), 422),
        (errors.IdempotencyKeyReused(""), 422),
        (errors.InvalidCredentials(""), 401),
        (errors.Forbidden(""), 403),
        (errors.TaskNotFound(""), 404),
        (errors.ResultExpired(""), 410),
        (MethodNotAllowed(""), 405),
        (RequestTimeout(""), 408),
        (errors.BodyTooLarge(""), 413),
        (errors.UnsupportedMediaType(""), 415),
        (errors.QuotaExceeded(""), 429),
        (errors.QueueFull(""), 503),
        (errors.CircuitOpen(""), 503),
        (errors.DeadlineExceeded(""), 504),
        (errors.StaleEpoch(""), 412),
        (errors.ProtocolViolation(""), 400),
        (errors.EngineFault(""), 500),
        (ButterflyError(""), 500),
    ],
)
def test_every_kind_of_error_has_its_status(error: ButterflyError, status: int) -> None:
    assert status_of(error) == status


def test_openai_and_v2_answer_400_where_problems_answer_422() -> None:
    assert status_of(errors.UnsupportedParameter(""), invalid=400) == 400
    assert status_of(errors.BodyTooLarge(""), invalid=400) == 413


def all_errors(root: type[ButterflyError] = ButterflyError) -> list[type[ButterflyError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in all_errors(child))]


def test_409_is_never_sent() -> None:
    assert all(status_of(kind("")) != 409 for kind in all_errors())


@pytest.mark.parametrize(
    ("error", "jitter", "wanted"),
    [
        (errors.QueueFull(""), 0.0, "1"),
        (errors.QueueFull("", retry_after_s=2.1), 0.0, "3"),
        (errors.QueueFull("", retry_after_s=8), 0.25, "10"),
        (errors.QueueFull("", retry_after_s=500), 0.0, "60"),
        (errors.VerificationUnavailable(""), 0.0, None),
        (errors.TaskNotFound(""), 0.0, None),
    ],
)
def test_retry_after_is_whole_seconds_where_waiting_helps(
    error: ButterflyError, jitter: float, wanted: str | None
) -> None:
    assert retry_after(error, jitter=jitter) == wanted
