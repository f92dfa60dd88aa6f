"""Three kinds of clients, three dialects. The path alone chooses, for every error, whoever raised it."""

import random
from enum import StrEnum
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shared.contracts.problem import FieldError
from shared.domain.errors import (
    ButterflyError,
    DeadlineExceeded,
    DisputeUnresolved,
    Fenced,
    GenerationFailed,
    IdempotencyKeyReused,
    InvalidInput,
    ProtocolViolation,
    TaskCancelled,
    VerificationUnavailable,
)
from shared.runtime.problems import error_headers, render_problem
from shared.runtime.statuses import ValidationFailed, status_of

_PROBLEM_PREFIXES: Final = tuple(
    f"/v1/{name}" for name in ("tasks", "state", "events", "nodes", "plans", "evidence", "metrics")
)
_RETRY_JITTER: Final = 0.25  # so that refused clients do not come back together
_HOPELESS: Final = (VerificationUnavailable, DeadlineExceeded, GenerationFailed, TaskCancelled, DisputeUnresolved)


class Dialect(StrEnum):
    OPENAI = "openai"
    V2 = "v2"
    PROBLEM = "problem"


def dialect_of(path: str) -> Dialect:
    if any(_is_below(path, prefix) for prefix in _PROBLEM_PREFIXES):
        return Dialect.PROBLEM
    if _is_below(path, "/v1"):
        return Dialect.OPENAI
    return Dialect.V2 if _is_below(path, "/v2") else Dialect.PROBLEM


def render_error(error: ButterflyError, request: Request) -> Response:
    """The answer to a request that failed, in the dialect of its path."""
    if isinstance(error, Fenced | ProtocolViolation):
        error = ButterflyError("internal error")  # a fault between our services is none of the client's
    response = _in_dialect(error, request)
    response.headers.update(error_headers(error, jitter=random.uniform(0, _RETRY_JITTER)))  # noqa: S311  no secret
    if isinstance(error, _HOPELESS):
        response.headers["x-should-retry"] = "false"
    return response


def _in_dialect(error: ButterflyError, request: Request) -> Response:
    match dialect_of(request.url.path):
        case Dialect.OPENAI:
            return _openai(error)
        case Dialect.V2:
            return _v2(error)
        case Dialect.PROBLEM:
            return render_problem(_as_problem(error), request)


def _openai(error: ButterflyError) -> Response:
    status = _status(error)
    body = {"message": error.message, "type": _openai_type(status), "param": error.param, "code": _code(error)}
    return JSONResponse({"error": body}, status)


def _v2(error: ButterflyError) -> Response:
    return JSONResponse({"error": f"{_code(error)}: {error.message}"}, _status(error))


def _as_problem(error: ButterflyError) -> ButterflyError:
    """A bad value is `validation_failed` here, with its field listed; what has a word of its own keeps it."""
    if type(error) is not InvalidInput:
        return error
    failed = ValidationFailed(error.message, param=error.param)
    failed.errors = (FieldError(path=error.param or "", message=error.message),)
    return failed


def _status(error: ButterflyError) -> int:
    """OpenAI and V2 say 400 to every invalid request, but for the one status that names a reused key."""
    return status_of(error, invalid=422 if isinstance(error, IdempotencyKeyReused) else 400)


def _code(error: ButterflyError) -> str:
    return InvalidInput.code if isinstance(error, ValidationFailed) else error.code


def _openai_type(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case status if status >= 500:
            return "server_error"
        case _:
            return "invalid_request_error"


def _is_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")
