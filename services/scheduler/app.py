"""Joins the scheduler's parts: the only file that knows which concrete ones."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.scheduler.clients.coordinator import HttpCoordinator
from services.scheduler.clients.partitioner import HttpPartitioner
from services.scheduler.domain.dispatch import QueueRules
from services.scheduler.own_series import QueueWatch, SchedulerMetrics
from services.scheduler.routes import build_router
from services.scheduler.service.dispatching import Dispatcher
from services.scheduler.service.following import Follower
from services.scheduler.service.preloading import Preloader
from services.scheduler.service.reconciling import Reconciler
from services.scheduler.service.scheduling import SchedulingService
from shared.domain.ids import ModelId
from shared.domain.plan import Seating
from shared.domain.task import Verification
from shared.registry.base import TaskRegistry
from shared.registry.redis_registry import connect_registry
from shared.resilience.pool import Connect
from shared.runtime.app import make_app
from shared.runtime.clock import Clock, SystemClock
from shared.runtime.config import Config, ConfigError
from shared.runtime.tasks import BackgroundTasks
from shared.runtime.telemetry import Telemetry


def create_app(
    config: Config,
    *,
    clock: Clock | None = None,
    connect: Connect | None = None,
    registry: TaskRegistry | None = None,
    rng: random.Random | None = None,
) -> FastAPI:
    """`connect` None: others are called over sockets. `registry` None: the one in Redis. `rng` (None: seeded by the
    system): for jitter."""
    clock = clock or SystemClock()
    scheduling = config.scheduling
    telemetry = Telemetry(
        source="scheduler", address=scheduling.bind_address, config=config, clock=clock, connect=connect, rng=rng
    )
    events = telemetry.events
    registry = registry or _registry(config)
    partitioner_client = telemetry.replicas("partitioner", config.services.partitioner_url)
    coordinator_client = telemetry.replicas("coordinator", config.services.coordinator_url)
    partitioner, coordinator = HttpPartitioner(partitioner_client), HttpCoordinator(coordinator_client)
    draining = asyncio.Event()
    tasks = BackgroundTasks(clock)

    service = SchedulingService(
        registry=registry,
        partitioner=partitioner,
        coordinator=coordinator,
        events=events,
        clock=clock,
        rules=QueueRules(
            is_fifo=scheduling.scheduler_type == "fifo",
            max_queue_size=scheduling.max_queue_size,
            max_queued_per_owner=config.api.max_queued_per_key,
        ),
    )
    follower = Follower(registry=registry, clock=clock, owner=f"scheduler-{secrets.token_hex(8)}")
    dispatcher = Dispatcher(
        registry=registry,
        partitioner=partitioner,
        coordinator=coordinator,
        follower=follower,
        events=events,
        clock=clock,
        batch_size=scheduling.dispatch_batch_size,
        draining=draining,
    )
    reconciler = Reconciler(
        registry=registry,
        coordinator=coordinator,
        follower=follower,
        events=events,
        clock=clock,
        waiting=lambda: dispatcher.waiting,
    )
    preloader = Preloader(
        partitioner=partitioner,
        coordinator=coordinator,
        clock=clock,
        models=[ModelId(name) for name in scheduling.preload_models],
        seating=_default_seating(config),
    )
    watch = QueueWatch(registry=registry, clock=clock)
    telemetry.registry.register(SchedulerMetrics(watch, reconciler.mended))

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with telemetry.running():
            tasks.loop("dispatch", dispatcher.run_once)
            tasks.loop("renew", follower.renew_once)
            tasks.loop("reconcile", reconciler.run_once)
            tasks.loop("watch_queue", watch.run_once)
            if scheduling.preload_models:
                tasks.loop("preload", preloader.run_once)
            try:
                yield
            finally:
                await dispatcher.drain()
                await tasks.stop(grace_s=2.0)
                await follower.give_up()
                await registry.aclose()

    return make_app(
        "scheduler",
        routers=[build_router(service)],
        lifespan=lifespan,
        readiness={
            "registry": registry.ping,
            "partitioner": partitioner_client.check,  # these also hear that a peer was started anew: without them
            "coordinator": coordinator_client.check,  # its circuit stays open for a minute after it is back
        },
        service_token=config.security.service_token.get_secret_value(),
        clock=clock,
        registry=telemetry.registry,
        draining=draining,
        peers=telemetry.peers.states,
    )


def _default_seating(config: Config) -> Seating:
    mode = Verification(config.coordination.default_verification)
    return Seating() if mode is Verification.NONE else Seating(mode, config.coordination.max_byzantine)


def _registry(config: Config) -> TaskRegistry:
    if config.redis.url is None:
        raise ConfigError("redis.url is not set: the scheduler needs the task registry, such as redis://127.0.0.1:6379")
    return connect_registry(
        config.redis.url.get_secret_value(), allow_weak_durability=config.redis.allow_weak_durability
    )
