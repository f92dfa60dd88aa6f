"""The apps of services without the framework around them: a history starts ten processes, and FastAPI's own work at a
start takes longer than the whole history.

Inside `light_apps` an `app.py` gets these in place of `make_app` and `APIRouter`. Routes, bodies by their contracts,
errors, deadlines, the service token and the checks of others are as they are there; limits of bodies, metrics and
refusals ahead of time are left out. `test_histories` plays some histories with both and compares.
"""

import asyncio
import inspect
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import services.coordinator.app
import services.coordinator.routes
import services.partitioner.app
import services.partitioner.routes
import services.scheduler.app
import services.scheduler.routes
import services.worker.app
import services.worker.routes
from shared.domain.deadline import Deadline
from shared.domain.errors import ButterflyError, InvalidInput, UnknownUrl, WrongServiceToken
from shared.events.local_metrics import LocalMetrics
from shared.events.publisher import HttpPublisher
from shared.resilience.context import DEADLINE_HEADER, SERVICE_TOKEN_HEADER, current_deadline
from shared.runtime.app import STOP_GRACE_S
from shared.runtime.clock import Clock
from shared.runtime.middleware import PROBE_PATHS, is_below
from shared.runtime.problems import render_problem
from shared.runtime.readiness import Check, Readiness
from shared.runtime.tasks import BackgroundTasks

Endpoint = Callable[..., Awaitable[Any]]  # Any: what a route takes and gives is known to its signature alone

APPS: Sequence[ModuleType] = (
    services.coordinator.app,
    services.partitioner.app,
    services.scheduler.app,
    services.worker.app,
)
ROUTES: Sequence[ModuleType] = (
    services.coordinator.routes,
    services.partitioner.routes,
    services.scheduler.routes,
    services.worker.routes,
)


@contextmanager
def light_apps() -> Iterator[None]:
    apps = [(module, "make_app", light_app) for module in APPS]
    with in_place([*apps, *((module, "APIRouter", Router) for module in ROUTES)]):
        yield


@contextmanager
def no_events() -> Iterator[None]:
    """Nothing is published, to nobody: no service decides anything by it."""
    with in_place(
        [
            (LocalMetrics, "__init__", lambda _, registry: None),
            (LocalMetrics, "publish", lambda _, event: None),
            (HttpPublisher, "publish", lambda _, event: None),
            (HttpPublisher, "run", _for_ever),
        ]
    ):
        yield


async def _for_ever(_: HttpPublisher) -> None:
    await asyncio.Event().wait()


@contextmanager
def in_place(changes: Sequence[tuple[object, str, object]]) -> Iterator[None]:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


class Route(NamedTuple):
    method: str
    path: re.Pattern[str]
    endpoint: Endpoint
    status: int
    is_plain: bool
    """Takes a request and gives a response: the framework's work is not wanted."""


class Router:
    """In place of `fastapi.APIRouter`."""

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def get(self, path: str) -> Callable[[Endpoint], Endpoint]:
        return self._adder("GET", path, 200)

    def post(self, path: str, *, status_code: int = 200) -> Callable[[Endpoint], Endpoint]:
        return self._adder("POST", path, status_code)

    def delete(self, path: str) -> Callable[[Endpoint], Endpoint]:
        return self._adder("DELETE", path, 200)

    def add_route(self, path: str, endpoint: Endpoint, *, methods: Sequence[str]) -> None:
        self.routes += (Route(method, _pattern(path), endpoint, 200, True) for method in methods)

    def _adder(self, method: str, path: str, status: int) -> Callable[[Endpoint], Endpoint]:
        def add(endpoint: Endpoint) -> Endpoint:
            self.routes.append(Route(method, _pattern(path), endpoint, status, False))
            return endpoint

        return add


def light_app(
    name: str,
    *,
    routers: Sequence[Router],
    lifespan: Callable[[], AbstractAsyncContextManager[None]],
    clock: Clock,
    readiness: Mapping[str, Check] | None = None,
    service_token: str = "",
    public_paths: Sequence[str] = (),
    draining: asyncio.Event | None = None,
    **_: object,
) -> "LightApp":
    """In place of `shared.runtime.app.make_app`."""
    return LightApp(
        name,
        [route for router in routers for route in router.routes],
        lifespan,
        Readiness(readiness or {}, clock),
        clock,
        service_token,
        (*PROBE_PATHS, *public_paths),
        draining or asyncio.Event(),
    )


class LightApp:
    def __init__(
        self,
        name: str,
        routes: Sequence[Route],
        lifespan: Callable[[], AbstractAsyncContextManager[None]],
        ready: Readiness,
        clock: Clock,
        service_token: str,
        public_paths: Sequence[str],
        draining: asyncio.Event,
    ) -> None:
        self._routes, self._lifespan, self._ready, self._clock = routes, lifespan, ready, clock
        self._service_token, self._public_paths = service_token, public_paths
        self._alive = json.dumps({"status": "alive", "service": name, "boot": secrets.token_hex(8)}).encode()
        self.state = SimpleNamespace(draining=draining)
        self.router = self  # where servers look for the lifespan

    @asynccontextmanager
    async def lifespan_context(self, _: object) -> AsyncIterator[None]:
        tasks = BackgroundTasks(self._clock)
        async with self._lifespan():
            tasks.loop("readiness", self._ready.round)
            try:
                yield
            finally:
                await tasks.stop(STOP_GRACE_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._answer(request, scope)
        except ButterflyError as error:
            response = render_problem(error, request)
        await response(scope, receive, send)

    async def _answer(self, request: Request, scope: Scope) -> Response:
        path, headers = scope["path"], request.headers
        shown = headers.get(SERVICE_TOKEN_HEADER, "")
        is_trusted = shown == self._service_token
        if not is_trusted and not is_below(path, self._public_paths):
            raise WrongServiceToken(f"this path needs the header {SERVICE_TOKEN_HEADER}")
        left_ms = headers.get(DEADLINE_HEADER)
        deadline = None if left_ms is None else Deadline.after(int(left_ms) / 1000, now_s=self._clock.now_s())
        scope["state"] = {"is_trusted": is_trusted, "deadline": deadline}
        current_deadline.set(deadline)
        if path == "/livez":
            return Response(self._alive)
        for route in self._routes:
            if route.method == scope["method"] and (found := route.path.fullmatch(path)) is not None:
                return await _served(route, request, found.groupdict())
        raise UnknownUrl(f"there is nothing at {path}")


async def _served(route: Route, request: Request, places: Mapping[str, str]) -> Response:
    if route.is_plain:
        response: Response = await route.endpoint(request)
        return response
    given: dict[str, object] = {}
    for parameter in _parameters(route.endpoint):
        if parameter.annotation is Request:
            given[parameter.name] = request
        elif parameter.name in places:
            given[parameter.name] = _adapter(parameter.annotation).validate_strings(places[parameter.name])
        elif body := await request.body():
            try:
                given[parameter.name] = _adapter(parameter.annotation).validate_json(body)
            except ValidationError:
                raise InvalidInput("the body breaks the contract") from None
    answer = await route.endpoint(**given)
    if isinstance(answer, Response):
        return answer
    content = (
        answer.model_dump_json().encode() if isinstance(answer, BaseModel) else _adapter(type(answer)).dump_json(answer)  # type: ignore[arg-type]  # a class can be hashed
    )
    return Response(content, status_code=route.status, media_type="application/json")


def _parameters(endpoint: Endpoint) -> Sequence[inspect.Parameter]:
    code = endpoint.__code__
    if code not in _KNOWN:
        _KNOWN[code] = tuple(inspect.signature(endpoint).parameters.values())
    return _KNOWN[code]


_KNOWN: dict[object, Sequence[inspect.Parameter]] = {}
"""By the code of the endpoints, which every start of a service makes anew."""


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+?)", path))
