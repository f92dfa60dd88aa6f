"""Joins the parts of the metrics service: the only file that knows which concrete ones."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from services.metrics.broadcast import Broadcast
from services.metrics.collectors import InMemoryCollector, MetricsCollector, PrometheusCollector
from services.metrics.own_series import ReceptionMetrics
from services.metrics.routes import PUBLIC_PATHS, STREAM_PATHS, build_router
from services.metrics.service import MetricsService
from shared.runtime.app import make_app
from shared.runtime.clock import Clock, SystemClock
from shared.runtime.config import Config, MetricsConfig
from shared.runtime.tasks import BackgroundTasks

MAX_BODY_BYTES = 2 * 1024 * 1024  # 500 events of bounded size are far below


def create_app(config: Config, *, clock: Clock | None = None) -> FastAPI:
    clock = clock or SystemClock()
    broadcast = Broadcast()
    service = MetricsService(collector=_collector(config.metrics), broadcast=broadcast, clock=clock)
    registry = CollectorRegistry()
    registry.register(ReceptionMetrics(service.reception))
    draining = asyncio.Event()
    tasks = BackgroundTasks(clock)

    async def end_streams() -> None:
        await draining.wait()
        broadcast.end()

    async def export() -> None:
        await clock.sleep(config.metrics.export_interval_secs)
        service.log_snapshot()

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        _ = tasks.start(end_streams(), name="end_streams")
        if config.metrics.export_interval_secs > 0:
            tasks.loop("export", export)
        try:
            yield
        finally:
            await tasks.stop(grace_s=1.0)

    return make_app(
        "metrics",
        routers=[build_router(service)],
        lifespan=lifespan,
        service_token=config.security.service_token.get_secret_value(),
        public_paths=PUBLIC_PATHS,
        stream_paths=STREAM_PATHS,
        max_body_bytes=MAX_BODY_BYTES,
        clock=clock,
        registry=registry,
        draining=draining,
    )


def _collector(config: MetricsConfig) -> MetricsCollector:
    match config.collector_type:
        case "prometheus":
            return PrometheusCollector(retention_s=config.retention_duration_secs)
        case "memory":
            return InMemoryCollector(retention_s=config.retention_duration_secs)
