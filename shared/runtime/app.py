"""Makes the FastAPI app of a service: its routers, and all that every service has."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Info, ProcessCollector, generate_latest
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response

from shared.contracts.peer_state import PeerState, ProcessState
from shared.domain.errors import WrongServiceToken
from shared.runtime.clock import Clock, SystemClock
from shared.runtime.early_refusal import EarlyRefusal
from shared.runtime.error_handlers import install_error_handlers
from shared.runtime.giving_up import GivingUp
from shared.runtime.middleware import PROBE_PATHS, BodyLimit, DeadlineHeader, LastAnswers, RequestContext, ServiceToken
from shared.runtime.problems import RenderError, render_problem
from shared.runtime.readiness import Check, Readiness
from shared.runtime.tasks import BackgroundTasks
from shared.runtime.version import butterfly_version

MEBIBYTE = 1024 * 1024
STOP_GRACE_S = 2.0
ARRIVAL_LIMIT_S = 30.0
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


def make_app(
    name: str,
    *,
    routers: Sequence[APIRouter],
    lifespan: Callable[[], AbstractAsyncContextManager[None]] | None = None,
    readiness: Mapping[str, Check] | None = None,
    service_token: str = "",
    public_paths: Sequence[str] = (),
    max_body_bytes: int = 8 * MEBIBYTE,
    body_limits: Mapping[str, int | None] | None = None,
    arrival_limit_s: float = ARRIVAL_LIMIT_S,
    stream_paths: Sequence[str] = (),
    render_error: RenderError = render_problem,
    clock: Clock | None = None,
    registry: CollectorRegistry | None = None,
    draining: asyncio.Event | None = None,
    giving_up: GivingUp | None = None,
    peers: Callable[[], Sequence[PeerState]] | None = None,
    docs: bool = False,
) -> FastAPI:
    """The app of service `name`.

    `lifespan`: start and stop of the service's own work. `readiness`: name → a call that raises while that dependency
    cannot be reached. `service_token`: what callers must show except below `public_paths` (empty: nobody must).
    `body_limits`: prefix → another limit than `max_body_bytes`, None for streams without end. `arrival_limit_s`:
    how long all other bodies may take to arrive. `stream_paths`: templates of routes whose answers last long, left out
    of the `http_*` series. `registry`: the service's own series, shown at /metrics beside those of the process.
    `draining`: set when the process was told to stop;
    `app.state.draining` is this event. `giving_up`: where the service says that it cannot go on, for `serve`.
    `peers`: what /state/peers shows to holders of the service token, also where all else is public; None: nothing.
    `docs`: serve /openapi.json and /docs.
    """
    clock = clock or SystemClock()
    registry = registry or CollectorRegistry()
    draining = draining or asyncio.Event()
    boot = secrets.token_hex(8)
    ready = Readiness(readiness or {}, clock)

    @asynccontextmanager
    async def whole_lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = BackgroundTasks(clock)
        async with lifespan() if lifespan else nullcontext():
            if readiness:
                tasks.loop("readiness", ready.round)
            app.state.started = True
            try:
                yield
            finally:
                await tasks.stop(STOP_GRACE_S)

    app = FastAPI(
        title=f"Butterfly {name}",
        version=butterfly_version(),
        lifespan=whole_lifespan,
        redirect_slashes=False,
        openapi_url="/openapi.json" if docs else None,
        docs_url="/docs" if docs else None,
        redoc_url=None,
        middleware=[
            Middleware(LastAnswers, draining=draining),
            Middleware(RequestContext, render=render_error, new_id=lambda: secrets.token_hex(16)),
            Middleware(DeadlineHeader, now=clock.now_s),
            Middleware(ServiceToken, token=service_token, public_paths=public_paths),
            Middleware(BodyLimit, max_bytes=max_body_bytes, by_path=body_limits or {}, arrival_limit_s=arrival_limit_s),
        ],
    )
    app.state.draining = draining
    app.state.giving_up = giving_up or GivingUp()
    app.state.started = False
    install_error_handlers(app, render_error)
    app.include_router(_probes(app, name, boot, ready))
    _expose_metrics(app, name, registry, stream_paths)
    if peers is not None:
        app.include_router(_state(name, boot, peers))
    for router in routers:
        _refuse_early(router, stream_paths, clock)
        app.include_router(router)
    return app


def _probes(app: FastAPI, name: str, boot: str, ready: Readiness) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    methods = ["GET", "HEAD"]

    async def livez() -> Response:
        """The event loop turns; nothing else is asked. `boot` tells callers whether this is another run."""
        return JSONResponse({"status": "alive", "service": name, "boot": boot})

    async def startupz() -> Response:
        is_started = bool(app.state.started)
        return JSONResponse({"status": "started" if is_started else "starting"}, 200 if is_started else 503)

    async def readyz() -> Response:
        report = ready.report(is_draining=app.state.draining.is_set())
        return JSONResponse(report.as_json(), 200 if report.is_ready else 503)

    router.add_api_route("/startupz", startupz, methods=methods)
    for path in ("/livez", "/healthz"):  # the second of each is the name that other servers use
        router.add_api_route(path, livez, methods=methods)
    for path in ("/readyz", "/health"):
        router.add_api_route(path, readyz, methods=methods)
    return router


def _refuse_early(router: APIRouter, stream_paths: Sequence[str], clock: Clock) -> None:
    for route in router.routes:
        if isinstance(route, APIRoute) and route.path not in stream_paths:
            # FastAPI makes the app of an included route anew; what it calls on the route stays.
            route.handle = EarlyRefusal(route.handle, now=clock.now_s)  # type: ignore[method-assign]


def _state(name: str, boot: str, peers: Callable[[], Sequence[PeerState]]) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/state/peers")
    async def state(request: Request) -> ProcessState:
        """The breakers, retry budgets and connection pools of this process."""
        if not request.state.is_trusted:
            raise WrongServiceToken("/state/peers is for holders of the service token")
        return ProcessState(service=name, boot=boot, peers=tuple(peers()))

    return router


def _expose_metrics(app: FastAPI, name: str, registry: CollectorRegistry, stream_paths: Sequence[str]) -> None:
    ProcessCollector(registry=registry)
    Info("butterfly_build", "What runs here.", registry=registry).info(
        {"service": name, "version": butterfly_version()}
    )
    Instrumentator(
        should_group_status_codes=False,
        should_exclude_streaming_duration=True,
        excluded_handlers=[f"^{path}$" for path in (*PROBE_PATHS, *stream_paths)],
        registry=registry,
    ).instrument(app, latency_lowr_buckets=LATENCY_BUCKETS_S)

    async def metrics() -> Response:
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app.add_api_route("/metrics", metrics, methods=["GET", "HEAD"], include_in_schema=False)
