"""Turns errors into answers: application/problem+json, the dialect between services."""

from collections.abc import Callable, Mapping
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from shared.contracts.problem import PROBLEM_MEDIA_TYPE, Problem
from shared.domain.errors import ButterflyError, InvalidCredentials
from shared.resilience.context import current_request_id
from shared.runtime.statuses import MethodNotAllowed, RequestTimeout, ValidationFailed, retry_after, status_of

RenderError = Callable[[ButterflyError, Request], Response]


def render_problem(error: ButterflyError, request: Request) -> Response:
    status = status_of(error)
    problem = Problem(
        type=f"urn:butterfly:problem:{error.code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.message,
        instance=request.url.path,
        code=error.code,
        retryable=error.retryable,
        request_id=current_request_id.get(),
        param=error.param,
        retry_after_s=error.retry_after_s,
        errors=error.errors if isinstance(error, ValidationFailed) else (),
    )
    return Response(
        problem.model_dump_json(exclude_none=True, exclude=None if problem.errors else {"errors"}),
        status_code=status,
        media_type=PROBLEM_MEDIA_TYPE,
        headers=error_headers(error),
    )


def error_headers(error: ButterflyError, *, jitter: float = 0.0) -> Mapping[str, str]:
    """Headers that belong to an error in every dialect."""
    headers = {}
    wait = retry_after(error, jitter=jitter)
    if wait is not None:
        headers["Retry-After"] = wait
    if isinstance(error, InvalidCredentials):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed) and error.allow:
        headers["Allow"] = error.allow
    if isinstance(error, RequestTimeout):
        headers["Connection"] = "close"  # the rest of the request may still come
    return headers
