"""A short way into an app for what is most of the traffic, `POST /messages`.

The framework's own work around a message (routing, middleware, its own metrics) costs as much as all the services do
with it. Here the route's function is called with the body parsed by its contract; errors are rendered as they are
there. What does not parse takes the long way.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import Message, Scope

from shared.domain.errors import ButterflyError, InvalidInput
from shared.runtime.problems import render_problem

PATH = "/messages"

Desk = Callable[[Scope, bytes], Awaitable[tuple[int, bytes] | None]]
"""Status and body of the answer; None: take the long way, nothing has been done."""


def front_desk(app: FastAPI) -> Desk | None:
    """None where the app takes no messages."""
    route = next((each for each in _routes(app.routes) if each.path == PATH), None)
    if route is None:
        return None
    # Any: what a route's function takes is known to its signature alone.
    readers: dict[str, TypeAdapter[Any] | None] = {
        name: None if parameter.annotation is Request else TypeAdapter(parameter.annotation)
        for name, parameter in inspect.signature(route.endpoint).parameters.items()
    }
    endpoint = route.endpoint

    async def answer(scope: Scope, body: bytes) -> tuple[int, bytes] | None:
        if scope["path"] != PATH:
            return None

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        request = Request(scope, receive)
        try:
            given = {name: reader.validate_json(body) if reader else request for name, reader in readers.items()}
        except ValidationError:
            return None
        try:
            reply: BaseModel = await endpoint(**given)
        except (ButterflyError, RequestValidationError) as raised:
            error = raised if isinstance(raised, ButterflyError) else InvalidInput("the body breaks the contract")
            problem = render_problem(error, request)
            return problem.status_code, bytes(problem.body)
        return 200, reply.model_dump_json().encode()

    return answer


def _routes(routes: Sequence[BaseRoute]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif included := getattr(route, "original_router", None):
            yield from _routes(included.routes)
