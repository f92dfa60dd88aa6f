"""The hosts of a history: every service and worker as `app.py` wires it, to be killed, hung and started again."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.types import Scope

from services.coordinator import app as coordinator
from services.coordinator.ports import EvidenceStore, Profiles, Replicas, Standings
from services.partitioner import app as partitioner
from services.partitioner.stores.model_folder import ModelFolder
from services.scheduler import app as scheduler
from services.worker.app import assemble
from services.worker.service.engine_thread import EngineThread
from shared.domain.errors import RegistryUnavailable
from shared.domain.signing import KEY_BYTES, SigningKey
from shared.registry.base import TaskRegistry
from shared.registry.receipts import ReceiptStore
from shared.resilience.hooks import PeerHooks
from shared.resilience.http_client import PeerClient
from shared.resilience.peer_group import PeerGroup
from shared.resilience.retry import RetryPolicy
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
from tests.fakes.engine import NUMERICS_CLASS, SyntheticLoader
from tests.fakes.evidence import MemoryEvidenceStore
from tests.fakes.profiles import MemoryProfiles
from tests.fakes.receipts import MemoryReceiptStore
from tests.fakes.replicas import MemoryReplicas
from tests.fakes.standings import MemoryStandings
from tests.simulation.seeded.fabric import Fabric, over
from tests.simulation.seeded.light import LightApp
from tests.simulation.seeded.story import STEP_S, Story
from tests.simulation.seeded.trace import Trace
from tests.simulation.seeded.watch import Watch
from tests.simulation.world.front_desk import front_desk
from tests.simulation.world.network import Exchange, Host, Network
from tests.simulation.world.virtual_time import RUNS_ON, VirtualClock, VirtualLoop
from tests.simulation.world.world import MODEL_ID, NUM_LAYERS, SECRET, write_model

STOP_S = 0.1
MAX_WORKERS = 5
CLIENT = "client"
BLOCKING = frozenset({"wait_for_work", "read_streams", "ping", "aclose"})


def prepare_home(folder: Path) -> None:
    """What is on the disks of all hosts of all histories: the model, every stage that can be cut of it, and the keys.
    Histories change nothing there, so that each finds the same."""
    write_model(folder / "models")
    models = ModelFolder(folder / "models")
    models.scan()
    models.complete(MODEL_ID)
    (folder / "stages").mkdir()
    for start, end in combinations(range(NUM_LAYERS + 1), 2):
        stage = models.stage(MODEL_ID, start, end)
        stage.write_to(folder / "stages" / f"{stage.stage_digest()}.gguf")
    rng = Random(0)
    for name in ("coordinator/coordinator_key", *(f"worker-{index}/node_key" for index in range(MAX_WORKERS))):
        file = folder / name
        file.parent.mkdir()
        file.write_bytes(SigningKey(rng.randbytes(KEY_BYTES)).secret)
        file.chmod(0o600)
    for index in range(MAX_WORKERS):
        (folder / f"worker-{index}" / "stages").symlink_to(folder / "stages")


@dataclass(eq=False)
class Run:
    """A process, from a start until it is gone."""

    host: Host
    label: str
    """Its own among all runs of all hosts."""
    is_dead: bool = False
    is_held: bool = False
    main: asyncio.Task[None] | None = None
    app: FastAPI | None = None


class Cluster:
    def __init__(
        self,
        home: Path,
        story: Story,
        *,
        fabric: Fabric,
        trace: Trace,
        rng: Random,
        registry: TaskRegistry,
        watch: Watch,
        clock: VirtualClock,
        loop: VirtualLoop,
    ) -> None:
        self._home, self._story, self._fabric, self._trace, self._rng = home, story, fabric, trace, rng
        self._registry, self._watch, self._clock, self._loop = registry, watch, clock, loop
        self.network = Network(fabric)
        self.receipts = MemoryReceiptStore(registry, clock.wall_s)
        self.evidence = MemoryEvidenceStore()
        self.standings = MemoryStandings()
        self.profiles = MemoryProfiles()
        self._replicas = MemoryReplicas(clock.now_s)
        self._runs: dict[str, Run] = {}
        self._num_runs = 0
        self._clocks = {
            name: VirtualClock(loop, skew_s=rng.uniform(-story.skew_s, story.skew_s)) for name in story.hosts
        }
        coordinators = [name for name in story.hosts if name.startswith("coordinator")]
        schedulers = [name for name in story.hosts if name.startswith("scheduler")]
        self._config = Config(
            scheduling=SchedulingConfig(bind_address="scheduler:80"),
            partition=PartitionConfig(
                bind_address="partitioner:80", num_stages=story.num_stages, models_dir=home / "models"
            ),
            coordination=CoordinationConfig(
                speeds="declared",
                bind_address="coordinator:80",
                data_dir=home / "coordinator",
                checkpoint_interval=2,
                window_checkpoints=2,
                tail_audit_fraction=story.tail_audit_fraction,
            ),
            services=ServicesConfig(
                scheduler_url=tuple(f"http://{name}:80" for name in schedulers),
                partitioner_url=("http://partitioner:80",),
                coordinator_url=tuple(f"http://{name}:80" for name in coordinators),
                metrics_url="http://metrics:80",
            ),
            security=SecurityConfig(service_token=SECRET, join_token=SecretStr("of workers")),
        )

    # --- what happens to hosts

    def start(self, name: str) -> None:
        """It begins to start; nothing waits for it."""
        if name in self._runs:
            return
        self._num_runs += 1
        label = f"{name}#{self._num_runs}"
        context = contextvars.copy_context()
        context.run(RUNS_ON.set, label)
        run = Run(Host(name, f"{name}:80", context), label)
        self._runs[name] = run
        run.main = self._loop.create_task(self._live(run, self._maker(name, run)), context=context)
        run.main.add_done_callback(partial(self._ended, label))
        self._trace.note(f"start {label}")

    def kill(self, name: str) -> None:
        run = self._runs.pop(name, None)
        if run is None:
            return
        run.is_dead = True
        self._trace.note(f"kill {run.label}")
        self.network.unlisten(run.host)
        self._loop.kill(run.label)

    async def stop(self, name: str) -> None:
        """Ends as it wants to. Returns when it is gone."""
        run = self._runs.get(name)
        if run is None or run.app is None or run.main is None:
            self.kill(name)  # told to stop before it handles that
            return
        self._trace.note(f"stop {run.label}")
        run.app.state.draining.set()
        await asyncio.wait([run.main])
        if self._runs.get(name) is run:
            del self._runs[name]
        self._loop.kill(run.label)

    def hold(self, name: str) -> None:
        run = self._runs.get(name)
        if run is not None:
            self._trace.note(f"hold {run.label}")
            self._loop.hold(run.label)

    def let_go(self, name: str) -> None:
        run = self._runs.get(name)
        if run is not None:
            self._trace.note(f"let go {run.label}")
            self._loop.let_go(run.label)

    def end(self) -> None:
        for name in list(self._runs):
            self.kill(name)

    # --- for clients

    def client(self, name: str) -> PeerClient:
        """Of one host, for somebody who holds the service token."""
        return PeerClient(
            name=name,
            base_url=f"http://{name}:80",
            service_token=SECRET.get_secret_value(),
            hooks=PeerHooks(),
            now=self._clock.now_s,
            rng=Random(0),
            retry=RetryPolicy(attempts=2),
            connect=self.network.connect(CLIENT),
        )

    def schedulers(self) -> PeerGroup:
        return PeerGroup([self.client(name) for name in self._story.hosts if name.startswith("scheduler")])

    # ---

    def _ended(self, label: str, main: "asyncio.Task[None]") -> None:
        if not main.cancelled() and (error := main.exception()) is not None:
            self._watch.violated(f"{label} broke: {error!r}")

    async def _live(self, run: Run, make_app: Callable[[], FastAPI]) -> None:
        app = make_app()
        async with app.router.lifespan_context(app):
            run.app = app
            self.network.listen(run.host, app, app.desk if isinstance(app, LightApp) else front_desk(app))
            await app.state.draining.wait()
            await asyncio.sleep(STOP_S)  # for links to end by themselves
            self.network.unlisten(run.host)

    def _maker(self, name: str, run: Run) -> Callable[[], FastAPI]:
        clock, rng = self._clocks[name], Random(self._rng.getrandbits(64))

        connect = OwnNetwork(self.network, run).connect(name)
        kind = name.partition("-")[0]
        if kind == "partitioner":
            return lambda: partitioner.create_app(self._config, clock=clock, connect=connect)
        if kind == "coordinator":
            config = self._config
            if self._story.num_coordinators > 1:
                section = config.coordination.model_copy(update={"advertise_url": f"http://{name}:80"})
                config = config.model_copy(update={"coordination": section})
            stores = coordinator.Stores(
                registry=self._registry_of(run),
                receipts=over(ReceiptStore, self.receipts, partial(self._through, run)),
                evidence=over(EvidenceStore, self.evidence, partial(self._through, run)),
                standings=over(Standings, self.standings, partial(self._through, run)),
                profiles=over(Profiles, self.profiles, partial(self._through, run)),
                replicas=over(Replicas, self._replicas, partial(self._through, run)),
            )
            return lambda: coordinator.create_app(
                config, clock=clock, connect=connect, stores=stores, secret=Random(rng.getrandbits(64)), rng=rng
            )
        if kind == "scheduler":
            registry = self._registry_of(run)
            return lambda: scheduler.create_app(self._config, clock=clock, connect=connect, registry=registry, rng=rng)
        worker = self._config.model_copy(
            update={
                "network": NetworkConfig(
                    listen_address=f"{name}:80", peer_addresses=self._config.services.coordinator_url
                ),
                "worker": WorkerConfig(
                    slots=8, context_tokens=64, threads=1, memory_mb=1_000, data_dir=self._home / name
                ),
                "security": SecurityConfig(join_token=self._config.security.join_token),
            }
        )
        return lambda: assemble(
            worker,
            loader=SyntheticLoader(before_step=lambda: self._loop.spend(STEP_S)),
            numerics_class=NUMERICS_CLASS,
            clock=clock,
            connect=connect,
            thread=EngineThread(self._loop.executor),
            rng=rng,
        )

    def _registry_of(self, run: Run) -> TaskRegistry:
        watched = over(TaskRegistry, self._registry, partial(self._watch.call, run.label), plain=BLOCKING)
        return over(TaskRegistry, watched, partial(self._through, run), plain=BLOCKING)

    async def _through(self, run: Run, name: str, _: tuple[Any, ...], call: Callable[[], Awaitable[Any]]) -> Any:
        if run.is_dead:
            raise RegistryUnavailable("this process is dead")
        return await self._fabric.stored(run.host.name, name, call)


class OwnNetwork(Network):
    """As one process reaches it: not at all, once it is dead."""

    def __init__(self, network: Network, run: Run) -> None:
        super().__init__()
        self._network, self._run = network, run

    def exchange(self, sender: str, address: str, scope: Scope) -> Exchange:
        if self._run.is_dead:
            raise httpx.ConnectError("this process is dead")
        return self._network.exchange(sender, address, scope)
