"""The one table from errors to HTTP statuses (gateway.md, section 2). 409 is never sent: clients retry it."""

import math

from shared.contracts.problem import FieldError
from shared.domain.errors import (
    BodyTooLarge,
    ButterflyError,
    DeadlineExceeded,
    Fenced,
    InvalidCredentials,
    InvalidInput,
    InvalidJson,
    NotAllowed,
    NotFound,
    ProtocolViolation,
    QuotaExceeded,
    ResultExpired,
    Unavailable,
    UnsupportedMediaType,
)

MAX_RETRY_AFTER_S = 60


class ValidationFailed(InvalidInput):
    """JSON that breaks the schema; `errors` names each field."""

    code = "validation_failed"
    errors: tuple[FieldError, ...] = ()


class MethodNotAllowed(InvalidInput):
    code = "method_not_allowed"
    allow: str = ""
    """The methods that the path does take, as in the `Allow` header."""


class RequestTimeout(ButterflyError):
    """The request did not arrive in time."""

    code = "request_timeout"
    retryable = True


_STATUSES: tuple[tuple[type[ButterflyError], int], ...] = (
    # The first class that fits decides: special ones before general ones.
    (InvalidJson, 400),
    (MethodNotAllowed, 405),
    (RequestTimeout, 408),
    (BodyTooLarge, 413),
    (UnsupportedMediaType, 415),
    (ResultExpired, 410),
    (NotFound, 404),
    (InvalidCredentials, 401),
    (NotAllowed, 403),
    (QuotaExceeded, 429),
    (Unavailable, 503),
    (DeadlineExceeded, 504),
    (Fenced, 412),
    (ProtocolViolation, 400),
)


def status_of(error: ButterflyError, *, invalid: int = 422) -> int:
    """The HTTP status of `error`. `invalid`: what a request that must be changed gets (OpenAI and V2: 400)."""
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status
    return invalid if isinstance(error, InvalidInput) else 500


def retry_after(error: ButterflyError, *, jitter: float = 0.0) -> str | None:
    """The value of `Retry-After` in whole seconds, 1 to 60; None for errors that waiting does not help.

    `jitter`, 0 to 0.25, lengthens the wait by that share, so that clients do not come back together.
    """
    if not isinstance(error, Unavailable) or not error.retryable:
        return None
    seconds = math.ceil((error.retry_after_s or 1.0) * (1 + jitter))
    return str(min(MAX_RETRY_AFTER_S, max(1, seconds)))
