"""Every error of an app goes through one renderer; FastAPI's own {"detail"} never leaves the process."""

from collections.abc import Sequence
from typing import cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from shared.contracts.problem import FieldError
from shared.domain.errors import (
    BodyTooLarge,
    ButterflyError,
    InvalidCredentials,
    InvalidInput,
    InvalidJson,
    NotAllowed,
    UnknownUrl,
    UnsupportedMediaType,
)
from shared.runtime.problems import RenderError
from shared.runtime.statuses import MethodNotAllowed, RequestTimeout, ValidationFailed

MAX_FIELD_ERRORS = 32
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def install_error_handlers(app: FastAPI, render: RenderError) -> None:
    async def on_error(request: Request, error: Exception) -> Response:
        return render(cast(ButterflyError, error), request)

    async def on_invalid(request: Request, error: Exception) -> Response:
        return render(invalid_request(cast(RequestValidationError, error), request), request)

    async def on_http_error(request: Request, error: Exception) -> Response:
        return render(from_http_exception(cast(HTTPException, error), request), request)

    app.add_exception_handler(ButterflyError, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)


def invalid_request(error: RequestValidationError, request: Request) -> ButterflyError:
    """`InvalidJson`, `UnsupportedMediaType`, or `ValidationFailed` naming each field, but not its value."""
    details = error.errors()
    if any(detail["type"] == "json_invalid" for detail in details):
        return InvalidJson("the body is not valid JSON")
    if details[0]["loc"] == ("body",) and details[0]["type"] == "missing":
        return InvalidJson("the body is empty")
    content_type = request.headers.get("content-type", "")
    if details[0]["loc"] == ("body",) and request.method != "GET" and "json" not in content_type:
        return UnsupportedMediaType("the content type should be application/json")
    fields = tuple(
        FieldError(path=_path(detail["loc"]), message=str(detail["msg"])) for detail in details[:MAX_FIELD_ERRORS]
    )
    failed = ValidationFailed("; ".join(f"{field.path}: {field.message}" for field in fields[:3]), param=fields[0].path)
    failed.errors = fields
    return failed


def from_http_exception(error: HTTPException, request: Request) -> ButterflyError:
    """What the framework itself found wrong, as an error of our tree."""
    match error.status_code:
        case 404:
            return UnknownUrl(f"there is nothing at {request.url.path}")
        case 405:
            wrong = MethodNotAllowed(f"{request.url.path} does not take {request.method}")
            wrong.allow = ", ".join(_allowed_methods(request))
            return wrong
        case 401:
            return InvalidCredentials("no valid credentials were given")
        case 403:
            return NotAllowed("these credentials do not allow that")
        case 408:
            return RequestTimeout("the body did not arrive in time")
        case 413:
            return BodyTooLarge("the body is too large")
        case 415:
            return UnsupportedMediaType("the content type should be application/json")
        case 400:  # FastAPI's word for a body that is not UTF-8 or is nested too deep
            return InvalidJson("the body cannot be read as JSON")
        case status if status < 500:
            return InvalidInput("the request cannot be understood")
        case _:
            return ButterflyError("internal error")


def _allowed_methods(request: Request) -> list[str]:
    """What the path takes. The framework's own `Allow` names the methods of the first route alone."""
    routes = request.app.routes
    return [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


def _path(location: Sequence[str | int]) -> str:
    """`body.messages.0.content` as `messages.0.content`: where a value came from says little."""
    parts = location[1:] if location and location[0] in {"body", "query", "path", "header"} else location
    return ".".join(str(part) for part in parts) or "body"
