"""HTTP of the metrics service: parse, call, answer."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST

from services.metrics.broadcast import Wanted
from services.metrics.service import MetricsInterface
from services.metrics.sse import to_sse
from shared.contracts.metrics import (
    EventBatch,
    EventEnvelope,
    MetricsSnapshot,
    NodeHealth,
    Quantiles,
    ScrapeTarget,
    SystemUtilization,
)
from shared.contracts.problem import Ack

KEEP_ALIVE_S = 10.0
PUBLIC_PATHS = ("/events", "/sd/prometheus", "/export/prometheus")
"""Workers hold no service token, and Prometheus cannot show one. What a worker tells is checked as a claim."""
STREAM_PATHS = ("/stream",)
SSE_HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


def build_router(service: MetricsInterface) -> APIRouter:
    router = APIRouter()

    @router.post("/events")
    async def take_events(batch: EventBatch, request: Request) -> Ack:
        service.take(batch, is_trusted=request.state.is_trusted)
        return Ack()

    @router.get("/snapshot")
    async def snapshot() -> MetricsSnapshot:
        return service.snapshot()

    @router.get("/query/task-latency")
    async def task_latency(since: Annotated[float, Query(ge=0, le=1e11, allow_inf_nan=False)] = 0.0) -> Quantiles:
        return service.task_latency(since_s=since)

    @router.get("/query/system")
    async def system() -> SystemUtilization:
        return service.system()

    @router.get("/query/nodes/{node_id}")
    async def node(node_id: str) -> NodeHealth:
        return service.node(node_id)

    @router.get("/sd/prometheus")
    async def service_discovery() -> list[ScrapeTarget]:
        return service.scrape_targets()

    @router.get("/export/prometheus")
    async def export() -> Response:
        return Response(service.export_prometheus(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @router.get("/stream")
    async def stream(types: str = "", task_id: str = "") -> StreamingResponse:
        events = _events(service, _filter(types, task_id))
        first = await anext(events)  # a refusal still gets its status
        return StreamingResponse(_chain(first, events), media_type="text/event-stream", headers=SSE_HEADERS)

    return router


async def _events(service: MetricsInterface, wanted: Wanted) -> AsyncIterator[str]:
    with service.subscribed(wanted) as subscription:
        yield ": connected\n\n"
        async for item in subscription.items(silence_s=KEEP_ALIVE_S):
            yield to_sse(item)


async def _chain(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for text in rest:
        yield text


def _filter(types: str, task_id: str) -> Wanted:
    names = frozenset(name for name in types.split(",") if name)

    def wanted(envelope: EventEnvelope) -> bool:
        return (not names or envelope.type in names) and (not task_id or envelope.subject == task_id)

    return wanted
