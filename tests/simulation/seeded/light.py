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
from dataclasses import dataclass
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

from pydantic import TypeAdapter, ValidationError
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

SERVICE_TOKEN, DEADLINE = SERVICE_TOKEN_HEADER.lower().encode(), DEADLINE_HEADER.lower().encode()

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


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    endpoint: Endpoint
    status: int = 200

    @property
    def has_places(self) -> bool:
        return "{" in self.path


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
        self.routes += (Route(method, path, endpoint) for method in methods)

    def _adder(self, method: str, path: str, status: int) -> Callable[[Endpoint], Endpoint]:
        def add(endpoint: Endpoint) -> Endpoint:
            self.routes.append(Route(method, path, endpoint, status))
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
        self._lifespan, self._ready, self._clock = lifespan, ready, clock
        self._plain = {(route.method, route.path): route for route in routes if not route.has_places}
        self._with_places = [route for route in routes if route.has_places]
        self._service_token, self._public_paths = service_token.encode(), public_paths
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

    async def desk(self, scope: Scope, body: bytes) -> tuple[int, bytes] | None:
        """The short way: requests that came whole and are answered by a body of the contracts."""
        try:
            self._let_in(scope)
            if scope["path"] == "/livez":
                return 200, self._alive
            route, places = self._route(scope)
            call = call_of(route.endpoint)
            if call.makes_response:
                return None
            given = call.given(places, body, lambda: _whole(scope, body))
            return route.status, call.written(await route.endpoint(**given))
        except ButterflyError as error:
            problem = render_problem(error, Request(scope))
            return problem.status_code, bytes(problem.body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            self._let_in(scope)
            route, places = self._route(scope)
            given = call_of(route.endpoint).given(places, b"", lambda: request)
            response: Response = await route.endpoint(**given)
        except ButterflyError as error:
            response = render_problem(error, request)
        await response(scope, receive, send)

    def _let_in(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        is_trusted = headers.get(SERVICE_TOKEN, b"") == self._service_token
        if not is_trusted and not _is_below(scope["path"], self._public_paths):
            raise WrongServiceToken(f"this path needs the header {SERVICE_TOKEN_HEADER}")
        left_ms = headers.get(DEADLINE)
        deadline = None if left_ms is None else Deadline.after(int(left_ms) / 1000, now_s=self._clock.now_s())
        scope["state"] = {"is_trusted": is_trusted, "deadline": deadline}
        current_deadline.set(deadline)

    def _route(self, scope: Scope) -> tuple[Route, Mapping[str, str]]:
        method, path = scope["method"], scope["path"]
        if (plain := self._plain.get((method, path))) is not None:
            return plain, {}
        for route in self._with_places:
            if route.method == method and (found := _pattern(route.path).fullmatch(path)) is not None:
                return route, found.groupdict()
        raise UnknownUrl(f"there is nothing at {path}")


class Call:
    """How an endpoint is called, by its signature."""

    def __init__(self, endpoint: Endpoint) -> None:
        signature = inspect.signature(endpoint)
        self.makes_response = signature.return_annotation is Response
        self._writer = None if self.makes_response else _adapter(signature.return_annotation)
        self._readers = {
            name: None if parameter.annotation is Request else _adapter(parameter.annotation)
            for name, parameter in signature.parameters.items()
        }

    def given(self, places: Mapping[str, str], body: bytes, request: Callable[[], Request]) -> Mapping[str, object]:
        """The arguments. `places`: of the path."""
        given: dict[str, object] = {}
        for name, reader in self._readers.items():
            if reader is None:
                given[name] = request()
            elif name in places:
                given[name] = reader.validate_strings(places[name])
            elif body:
                try:
                    given[name] = reader.validate_json(body)
                except ValidationError:
                    raise InvalidInput("the body breaks the contract") from None
        return given

    def written(self, answer: object) -> bytes:
        assert self._writer is not None, "this endpoint makes whole responses"
        return self._writer.dump_json(answer)


def call_of(endpoint: Endpoint) -> Call:
    code = endpoint.__code__
    if code not in _CALLS:
        _CALLS[code] = Call(endpoint)
    return _CALLS[code]


_CALLS: dict[object, Call] = {}
"""By the code of the endpoints, which every start of a service makes anew."""


def _whole(scope: Scope, body: bytes) -> Request:
    request = Request(scope)
    request._body = body  # as if it had been read
    return request


_is_below = cache(is_below)


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


@cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+?)", path))
