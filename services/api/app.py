"""Joins the gateway's parts: the only file that knows which concrete ones."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

from services.api.clients.coordinator import HttpNodes
from services.api.clients.partitioner import HttpCatalogue, HttpPlanner
from services.api.clients.scheduler import HttpScheduler
from services.api.clients.services import HttpServices
from services.api.dialects import render_error
from services.api.metrics import GatewayMetrics
from services.api.ports import Catalogue, Nodes, Planner, Scheduler, Services, Vocabularies
from services.api.routes import openai, tasks
from services.api.routes.cluster import build_cluster_router
from services.api.routes.plans import build_plans_router
from services.api.service.attachments import Attachments
from services.api.service.cluster import ClusterService
from services.api.service.gateway import GatewayService
from services.api.service.plans import PlansService
from services.api.service.preparation import TaskDefaults, TaskPreparation
from services.api.service.tasks import TasksService
from services.api.stores.stream_hub import StreamHub
from services.api.stores.task_reader import RegistryTaskReader
from services.api.stores.vocabularies import VocabularyStore
from shared.contracts.peer_state import PeerState
from shared.domain.errors import ButterflyError, ServerDraining
from shared.domain.ids import ModelId
from shared.domain.task import Verification
from shared.llama.library import load_library
from shared.llama.vocabulary import Vocabulary
from shared.registry.base import TaskRegistry
from shared.registry.receipts import ReceiptStore
from shared.registry.redis_receipts import RedisReceiptStore
from shared.registry.redis_registry import connect_registry
from shared.resilience.breaker import BreakerPolicy
from shared.resilience.hooks import PeerHooks
from shared.resilience.http_client import PeerClient
from shared.resilience.retry import RetryPolicy
from shared.runtime.app import MEBIBYTE, make_app
from shared.runtime.clock import Clock, SystemClock
from shared.runtime.config import Config, ConfigError, is_loopback
from shared.runtime.readiness import Check
from shared.runtime.tasks import BackgroundTasks
from shared.runtime.telemetry import Telemetry

MAX_JSON_BYTES = 8 * MEBIBYTE  # what the context of no model exceeds; `api.max_request_size_mb` may set less
DRAIN_S = 20.0  # open answers may finish for this long; the process is stopped hard 5 s later
STOP_GRACE_S = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """Everything outside the gateway. Tests put fakes here."""

    scheduler: Scheduler
    catalogue: Catalogue
    nodes: Nodes
    planner: Planner
    services: Services
    registry: TaskRegistry
    receipts: ReceiptStore
    vocabularies: Vocabularies
    clock: Clock
    readiness: Mapping[str, Check] = field(default_factory=dict)
    running: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    """Held open while the gateway runs."""
    series: CollectorRegistry = field(default_factory=CollectorRegistry)
    peers: Callable[[], Sequence[PeerState]] = tuple
    """The services it calls, for /state/peers."""


def create_app(config: Config) -> FastAPI:
    """Raises `ConfigError` when no Redis is configured."""
    if config.redis.url is None:
        raise ConfigError("redis.url: should name the Redis server, such as redis://127.0.0.1:6379")
    clock = SystemClock()
    telemetry = Telemetry(source="api", address=config.api.bind_address, config=config, clock=clock)
    urls = config.services
    scheduler = telemetry.replicas("scheduler", urls.scheduler_url)
    partitioner = telemetry.replicas("partitioner", urls.partitioner_url)
    coordinator = telemetry.replicas("coordinator", urls.coordinator_url)
    registry = connect_registry(
        config.redis.url.get_secret_value(), allow_weak_durability=config.redis.allow_weak_durability
    )
    catalogue = HttpCatalogue(partitioner, now=clock.now_s)
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vocabulary")
    loads = BackgroundTasks(clock)
    asked = [
        _asked_for_health(name if len(replicas) == 1 else f"{name}-{place}", url, clock)
        for name, replicas in (
            ("scheduler", urls.scheduler_url),
            ("partitioner", urls.partitioner_url),
            ("coordinator", urls.coordinator_url),
            ("metrics", (urls.metrics_url,)),
        )
        for place, url in enumerate(replicas)
    ]

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        async with telemetry.running():
            try:
                yield
            finally:
                await loads.stop(STOP_GRACE_S)
                executor.shutdown(wait=False, cancel_futures=True)
                for peer in asked:
                    await peer.aclose()
                await registry.aclose()

    surroundings = Surroundings(
        scheduler=HttpScheduler(scheduler),
        catalogue=catalogue,
        nodes=HttpNodes(coordinator),
        planner=HttpPlanner(partitioner),
        services=HttpServices(asked),
        registry=registry,
        receipts=RedisReceiptStore(registry.clients),
        vocabularies=VocabularyStore(
            fetch=catalogue.vocabulary_file, load=_load_vocabulary, executor=executor, tasks=loads, now=clock.now_s
        ),
        clock=clock,
        readiness={
            "scheduler": scheduler.check,
            "partitioner": partitioner.check,
            "coordinator": coordinator.check,
            "registry": registry.ping,
        },
        running=running,
        series=telemetry.registry,
        peers=telemetry.peers.states,
    )
    return join(config, surroundings)


def join(config: Config, outside: Surroundings) -> FastAPI:
    """The gateway amid its surroundings."""
    clock, draining = outside.clock, asyncio.Event()
    background = BackgroundTasks(clock)
    hub = StreamHub(outside.registry)
    reader = RegistryTaskReader(outside.registry, outside.receipts, hub)
    defaults = _defaults(config)
    preparation = TaskPreparation(
        catalogue=outside.catalogue,
        vocabularies=outside.vocabularies,
        defaults=defaults,
        wall_s=clock.wall_s,
        entropy=secrets.token_bytes,
    )
    attachments = Attachments(outside.scheduler, clock)
    service_token = config.security.service_token.get_secret_value()
    gateway = GatewayService(
        preparation=preparation,
        scheduler=outside.scheduler,
        reader=reader,
        attachments=attachments,
        metrics=GatewayMetrics(outside.series, now=clock.now_s),
        tasks=background,
        draining=draining,
        wall_s=clock.wall_s,
    )
    task_api = TasksService(preparation=preparation, scheduler=outside.scheduler, reader=reader, draining=draining)
    cluster = ClusterService(
        catalogue=outside.catalogue,
        nodes=outside.nodes,
        scheduler=outside.scheduler,
        services=outside.services,
        clock=clock,
        context_tokens=config.worker.context_tokens,
    )
    plans = PlansService(catalogue=outside.catalogue, nodes=outside.nodes, planner=outside.planner, defaults=defaults)

    async def drain() -> None:
        await draining.wait()
        stopping = ServerDraining("this server is stopping", retry_after_s=1.0)
        hub.fail(stopping, patient=False)
        await clock.sleep(DRAIN_S)
        hub.fail(stopping, patient=True)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with outside.running():
            background.loop("task_streams", hub.round)
            background.loop("attachments", attachments.round)
            _ = background.start(drain(), name="drain")
            _ = background.start(_warm(config, outside), name="warm vocabularies")
            try:
                yield
            finally:
                await background.stop(STOP_GRACE_S)

    app = make_app(
        "api",
        routers=(
            openai.build_openai_router(gateway, cluster, clock),
            tasks.build_tasks_router(task_api, clock),
            build_cluster_router(cluster),
            build_plans_router(plans),
        ),
        lifespan=lifespan,
        readiness=outside.readiness,
        max_body_bytes=min(MAX_JSON_BYTES, config.api.max_request_size_mb * MEBIBYTE),
        arrival_limit_s=config.api.request_timeout_secs,
        stream_paths=(*openai.STREAM_PATHS, *tasks.STREAM_PATHS),
        render_error=render_error,
        clock=clock,
        service_token=service_token,
        public_paths=("/",),
        registry=outside.series,
        draining=draining,
        peers=outside.peers if service_token or is_loopback(config.api.bind_address) else None,
    )
    if config.api.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=config.api.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return app


def _defaults(config: Config) -> TaskDefaults:
    return TaskDefaults(
        max_output_tokens=config.api.max_output_tokens,
        context_tokens=config.worker.context_tokens,
        deadline_s=config.api.default_deadline_s,
        verification=Verification(config.coordination.default_verification),
        max_byzantine=config.coordination.max_byzantine,
        hold=config.coordination.tail_audit_fraction >= 1.0,
    )


def _asked_for_health(name: str, url: str, clock: Clock) -> PeerClient:
    """Asked once per look, and looked at again whatever it answered: a service that starts is no broken peer."""
    return PeerClient(
        name=name,
        base_url=url,
        hooks=PeerHooks(),
        now=clock.now_s,
        retry=RetryPolicy(attempts=1),
        breaker=BreakerPolicy(open_s=0.0),
    )


def _load_vocabulary(path: Path) -> Vocabulary:
    return Vocabulary(load_library(), path)


async def _warm(config: Config, outside: Surroundings) -> None:
    """Load the vocabularies of the preloaded models, so that the first request need not wait."""
    for model_id in config.scheduling.preload_models:
        try:
            await outside.vocabularies.of(await outside.catalogue.model(ModelId(model_id)))
        except ButterflyError as error:
            log.warning("vocabulary_not_warmed", extra={"model": model_id, "error": error.message})
