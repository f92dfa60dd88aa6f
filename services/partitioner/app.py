"""Joins the partitioner's parts: the only file that knows which concrete ones."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.partitioner.domain.planning import SeatRules
from services.partitioner.domain.rebalancing import Rebalancing, Terms
from services.partitioner.domain.strategies import StrategyRegistry
from services.partitioner.domain.strategies.custom import Checked
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from services.partitioner.domain.strategies.topology_aware import TopologyAware
from services.partitioner.domain.strategies.uniform import Uniform
from services.partitioner.routes import PUBLIC_PATHS, build_models_router, build_plans_router, build_stages_router
from services.partitioner.service.catalogue import CatalogueService
from services.partitioner.service.pipelines import PipelinesService
from services.partitioner.service.plans import PartitionService
from services.partitioner.stores.installed_strategies import installed_strategies
from services.partitioner.stores.memory_plan_cache import MemoryPlanCache
from services.partitioner.stores.model_folder import ModelFolder
from shared.domain.plan import Objective
from shared.resilience.pool import Connect
from shared.runtime.app import make_app
from shared.runtime.clock import Clock, SystemClock
from shared.runtime.config import Config, ConfigError
from shared.runtime.tasks import BackgroundTasks
from shared.runtime.telemetry import Telemetry

STOP_GRACE_S = 1.0


def _strategies(default: str) -> StrategyRegistry:
    """Those of Butterfly and of installed packages. Raises `ConfigError`, also when the default is none of them."""
    try:
        known = StrategyRegistry([Uniform(), LoadBalanced(), TopologyAware(), *map(Checked, installed_strategies())])
    except ValueError as error:
        raise ConfigError(f"{error}: rename or uninstall one") from None
    if default not in known.names:
        raise ConfigError(f"partition.default_strategy: {default!r} should be one of {', '.join(known.names)}")
    return known


def create_app(
    config: Config,
    *,
    clock: Clock | None = None,
    connect: Connect | None = None,
    rng: random.Random | None = None,
) -> FastAPI:
    """`connect` None: others are called over sockets. `rng` (None: seeded by the system): for jitter."""
    clock = clock or SystemClock()
    partition = config.partition
    telemetry = Telemetry(
        source="partitioner", address=partition.bind_address, config=config, clock=clock, connect=connect, rng=rng
    )
    tasks = BackgroundTasks(clock)
    catalogue = CatalogueService(store=ModelFolder(partition.models_dir), now=clock.now_s)
    strategies = _strategies(partition.default_strategy)
    rules = SeatRules(
        spread_by=config.coordination.spread_by, always_blind=config.coordination.require_blind == "always"
    )
    plans = PartitionService(
        strategies=strategies,
        cache=MemoryPlanCache(capacity=partition.cache_size, recompute_threshold=partition.recompute_threshold),
        events=telemetry.events,
        preferred_stages=partition.num_stages,
        rules=rules,
        worth_changing=partition.recompute_threshold,
        now=clock.now_s,
    )
    pipelines = PipelinesService(
        strategies=strategies,
        events=telemetry.events,
        preferred_stages=partition.num_stages,
        rules=rules,
        terms=Terms(
            rule=Rebalancing(partition.rebalance),
            threshold=partition.recompute_threshold,
            least_s=partition.rebalance_interval_s,
        ),
        capacity=partition.cache_size,
        now=clock.now_s,
    )

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with telemetry.running():
            await catalogue.rescan()
            tasks.loop("complete_models", catalogue.complete_pending)
            try:
                yield
            finally:
                await tasks.stop(STOP_GRACE_S)

    return make_app(
        "partitioner",
        routers=[
            build_models_router(catalogue),
            build_stages_router(catalogue),
            build_plans_router(
                plans,
                pipelines,
                catalogue,
                default_strategy=partition.default_strategy,
                default_objective=Objective(partition.default_objective),
                window_tokens=config.coordination.checkpoint_interval * config.coordination.window_checkpoints,
            ),
        ],
        lifespan=lifespan,
        readiness={"models": catalogue.check_ready},
        service_token=config.security.service_token.get_secret_value(),
        public_paths=PUBLIC_PATHS,
        clock=clock,
        registry=telemetry.registry,
        peers=telemetry.peers.states,
    )
