"""The services and their workers in one process, on one event loop: as `app.py` wires them, but for what lies beneath.

In place of sockets there is a network in memory, in place of Redis stores in memory, in place of a model the synthetic
one; time is virtual. Signatures, frames, HTTP bodies and everything that decides are those of production.
"""

import asyncio
import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fastapi import FastAPI
from pydantic import SecretStr

from services.coordinator import app as coordinator
from services.partitioner import app as partitioner
from services.scheduler import app as scheduler
from services.worker.app import assemble
from services.worker.clients.coordinator import HttpCoordinator
from services.worker.clients.link import HttpLinkCarrier
from services.worker.domain.identity import Identity
from services.worker.ports import Coordinator, EngineLoader, LinkCarrier, ReceiptSigner
from services.worker.service.engine_thread import EngineThread
from services.worker.service.receipts import KeySigner
from shared.domain.ids import ModelId, NodeId
from shared.domain.signing import KEY_BYTES, SigningKey
from shared.resilience.hooks import PeerHooks
from shared.resilience.http_client import PeerClient, PeerClients
from shared.runtime.config import (
    Config,
    CoordinationConfig,
    NetworkConfig,
    PartitionConfig,
    SchedulingConfig,
    SecurityConfig,
    ServicesConfig,
    WorkerConfig,
)
from tests.fakes.engine import NUMERICS_CLASS, SyntheticLoader, SyntheticModel
from tests.fakes.evidence import MemoryEvidenceStore
from tests.fakes.profiles import MemoryProfiles
from tests.fakes.receipts import MemoryReceiptStore
from tests.fakes.replicas import MemoryReplicas
from tests.fakes.standings import MemoryStandings
from tests.fakes.task_registry import MemoryTaskRegistry
from tests.fakes.tiny_models import write_tiny_model
from tests.simulation.world.front_desk import front_desk
from tests.simulation.world.network import FAIR, Host, Network, Weather
from tests.simulation.world.virtual_time import VirtualClock, VirtualLoop

NUM_LAYERS = 6
MODEL = SyntheticModel(NUM_LAYERS)
MODEL_ID = ModelId("synthetic")
SECRET = SecretStr("of this world")
STEP_S = 0.000_5
"""Virtual: what a call of an engine takes, or no time would pass while there is work."""
STOP_S = 0.1
"""Virtual: for links to end by themselves before their connections do."""

SERVICES = ServicesConfig(
    scheduler_url=("http://scheduler:80",),
    partitioner_url=("http://partitioner:80",),
    coordinator_url=("http://coordinator:80",),
    metrics_url="http://metrics:80",
)


def write_model(folder: Path) -> None:
    """The file that the partitioner cuts; what it holds is never computed with."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_model(folder / f"{MODEL_ID}.gguf", num_layers=NUM_LAYERS)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a worker is made of where it may lie."""

    loader: EngineLoader
    make_signer: Callable[[Identity], ReceiptSigner] = KeySigner
    make_carrier: Callable[[PeerClients], LinkCarrier] = HttpLinkCarrier
    make_coordinator: Callable[[PeerClient, str, Identity], Coordinator] = lambda client, token, _: HttpCoordinator(
        client, token
    )
    wrap_app: Callable[[FastAPI], FastAPI] | None = None


class Process:
    """A service or a worker, from its start until it has stopped."""

    def __init__(self, host: Host, network: Network, make_app: Callable[[], FastAPI], *, has_desk: bool = True) -> None:
        """`has_desk` False: every request goes through the whole app."""
        self.host = host
        self._has_desk = has_desk
        self._network = network
        self._make_app = make_app
        self._is_told_to_stop = asyncio.Event()
        self._has_started = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when it listens."""
        self._running = asyncio.get_running_loop().create_task(self._run(), context=self.host.context)
        await self._has_started.wait()
        if self._running.done():
            await self._running

    async def stop(self) -> None:
        """As at SIGTERM; returns when it is gone."""
        if self._running is not None:
            self._is_told_to_stop.set()
            await self._running

    async def _run(self) -> None:
        try:
            app = self._make_app()
            async with app.router.lifespan_context(app):
                self._network.listen(self.host, app, front_desk(app) if self._has_desk else None)
                self._has_started.set()
                await self._is_told_to_stop.wait()
                app.state.draining.set()
                await asyncio.sleep(STOP_S)
                self._network.unlisten(self.host)
        finally:
            self._has_started.set()


class World:
    """Control services and honest workers; `stop` ends all that were started."""

    def __init__(
        self,
        folder: Path,
        rng: Random,
        *,
        coordination: CoordinationConfig,
        stages: int,
        weather: Weather = FAIR,
    ) -> None:
        """`folder` holds the model (`write_model`) in `models`, and becomes the home of the keys."""
        self._folder = folder
        self._rng = rng
        self._stages = stages
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop), "a world needs virtual time"
        self._loop = loop
        self.clock = VirtualClock(loop)
        self.network = Network(weather)
        registry = MemoryTaskRegistry(self.clock.wall_s)
        self.stores = coordinator.Stores(
            registry=registry,
            receipts=MemoryReceiptStore(registry, self.clock.wall_s),
            evidence=MemoryEvidenceStore(),
            standings=MemoryStandings(),
            profiles=MemoryProfiles(),
            replicas=MemoryReplicas(self.clock.now_s),
        )
        self._coordination = coordination.model_copy(
            update={"bind_address": "coordinator:80", "data_dir": folder / "coordinator", "speeds": "declared"}
        )
        self._processes: list[Process] = []
        self.workers: dict[NodeId, Process] = {}

    async def start(self, workers: int) -> None:
        """Returns when all workers have joined."""
        config = self._config()
        secret = Random(self._rng.random())
        self._put_key(self._folder / "coordinator" / "coordinator_key")
        await self._start(
            "partitioner",
            "partitioner:80",
            lambda: partitioner.create_app(config, clock=self.clock, connect=self.network.connect("partitioner")),
        )
        await self._start(
            "coordinator",
            "coordinator:80",
            lambda: coordinator.create_app(
                config,
                clock=self.clock,
                connect=self.network.connect("coordinator"),
                stores=self.stores,
                secret=secret,
            ),
        )
        await self._start(
            "scheduler",
            "scheduler:80",
            lambda: scheduler.create_app(
                config,
                clock=self.clock,
                connect=self.network.connect("scheduler"),
                registry=self.stores.registry,
            ),
        )
        for _ in range(workers):
            await self.start_worker(Parts(self.loader()))

    def loader(self) -> SyntheticLoader:
        """Of engines whose calls take time."""
        return SyntheticLoader(before_step=lambda: self._loop.spend(STEP_S))

    def client(self, service: str) -> PeerClient:
        """Of somebody who holds the service token."""
        return PeerClient(
            name=service,
            base_url=f"http://{service}:80",
            service_token=SECRET.get_secret_value(),
            hooks=PeerHooks(),
            now=self.clock.now_s,
            connect=self.network.connect("client"),
        )

    async def start_worker(self, parts: Parts) -> tuple[NodeId, Process]:
        """A new node; it joins by and by."""
        number = len(self.workers) + 1
        address = f"10.0.{number // 256}.{number % 256}:8090"
        data_dir = self._folder / "workers" / str(number)
        key = self._put_key(data_dir / "node_key")
        identity = Identity(key.node_id, key)
        config = self._config(
            network=NetworkConfig(listen_address=address, peer_addresses=SERVICES.coordinator_url),
            worker=WorkerConfig(slots=32, context_tokens=256, threads=1, memory_mb=1_000, data_dir=data_dir),
        )
        rng = Random(self._rng.random())

        def make_app() -> FastAPI:
            app = assemble(
                config,
                loader=parts.loader,
                numerics_class=NUMERICS_CLASS,
                clock=self.clock,
                make_signer=parts.make_signer,
                make_carrier=parts.make_carrier,
                make_coordinator=lambda client, token: parts.make_coordinator(client, token, identity),
                connect=self.network.connect(identity.node_id),
                thread=EngineThread(self._loop.executor),
                rng=rng,
            )
            return parts.wrap_app(app) if parts.wrap_app else app

        process = await self._start(identity.node_id, address, make_app, has_desk=parts.wrap_app is None)
        self.workers[identity.node_id] = process
        return identity.node_id, process

    async def stop(self) -> None:
        for process in reversed(self._processes):
            await process.stop()

    async def _start(
        self, name: str, address: str, make_app: Callable[[], FastAPI], *, has_desk: bool = True
    ) -> Process:
        host = Host(name, address, contextvars.copy_context())
        process = Process(host, self.network, make_app, has_desk=has_desk)
        self._processes.append(process)
        await process.start()
        return process

    def _put_key(self, file: Path) -> SigningKey:
        key = SigningKey(self._rng.randbytes(KEY_BYTES))
        file.parent.mkdir(parents=True)
        file.write_bytes(key.secret)
        file.chmod(0o600)
        return key

    def _config(self, **sections: object) -> Config:
        return Config(
            scheduling=SchedulingConfig(bind_address="scheduler:80"),
            partition=PartitionConfig(
                bind_address="partitioner:80", num_stages=self._stages, models_dir=self._folder / "models"
            ),
            coordination=self._coordination,
            services=SERVICES,
            security=SecurityConfig(service_token=SECRET, join_token=SECRET),
            **sections,
        )
