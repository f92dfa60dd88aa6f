"""A real cluster, as `butterfly up` plans and supervises it; its processes reach each other over edges."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from services.cli.domain.cluster import Kind
from services.cli.local_cluster import LOOPBACK, LocalCluster, Wishes, plan_cluster
from services.cli.stores.data_dir import DataDir, ProcessStatus
from services.cli.supervisor import ProcessSpec, State, Supervisor
from shared.runtime.clock import SystemClock
from shared.runtime.config import load_config
from tests.chaos.edges import HOST, Edge
from tests.fakes.free_ports import free_base_port

OWN_ADDRESS = ("__BIND_ADDRESS", "__LISTEN_ADDRESS")
"""Ends of the variables that say where a process itself listens."""
_PORT = re.compile(r"127\.0\.0\.1:(\d+)")
START_LIMIT_S = 180.0
STOP_LIMIT_S = 90.0


@dataclass(frozen=True, slots=True)
class Shape:
    model: str
    workers: int
    stages: int
    settings: Mapping[str, str]
    """Environment of all processes, beside what it is here."""
    worker_command: Sequence[str] = ()
    """In place of the worker service; empty: that."""
    replicas: Mapping[Kind, int] = field(default_factory=dict)
    """How many of a service, where not one."""


class ChaosCluster:
    """Processes by name: `api`, `worker-0`, …"""

    def __init__(
        self, planned: LocalCluster, specs: Sequence[ProcessSpec], edges: Sequence[Edge], data: DataDir
    ) -> None:
        self._planned, self._data = planned, data
        self._edges = edges
        self.states: dict[str, ProcessStatus] = {}
        self.changed = asyncio.Event()
        self.started = asyncio.Event()
        self.output: list[str] = []
        """What the operator would see."""
        self.supervisor = Supervisor(
            specs, clock=SystemClock(), logs=data.logs, show=self.output.append, publish=self._publish
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.states))

    @property
    def redis_url(self) -> str:
        """Past all edges: for who reads the registry from outside."""
        return self._planned.layout.redis_url

    @property
    def api_url(self) -> str:
        """As clients reach it: over an edge."""
        (edge,) = [edge for edge in self._edges if edge.caller is None and edge.callee == Kind.API]
        return f"http://{HOST}:{edge.port}"

    @property
    def logs(self) -> Path:
        return self._data.logs

    def send(self, name: str, number: signal.Signals) -> bool:
        """Whether the process was there to be signalled."""
        status = self.states.get(name)
        if status is None or status.pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(status.pid, number)
            return True
        return False

    def edges_of(self, name: str, *, calls: bool, called: bool) -> list[Edge]:
        """`calls`: those over which it calls others; `called`: those over which others call it."""
        return [edge for edge in self._edges if (calls and edge.caller == name) or (called and edge.callee == name)]

    async def run(self) -> int:
        async def note() -> None:
            self.started.set()

        return await self.supervisor.run(note)

    def _publish(self, processes: tuple[ProcessStatus, ...]) -> None:
        self.states = {process.name: process for process in processes}
        self.changed.set()

    async def until_all_ready(self) -> None:
        while {status.state for status in self.states.values()} != {State.READY}:
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def chaos_cluster(shape: Shape, data: DataDir) -> AsyncIterator[ChaosCluster]:
    """All processes have started and are ready; they are ended whatever happens."""
    environ = {**os.environ, **shape.settings}
    base_port = free_base_port(shape.workers, shape.replicas)
    wishes = Wishes(shape.workers, base_port, LOOPBACK, shape.model, shape.stages, shape.replicas)
    planned = plan_cluster(wishes, load_config(None, environ), data, parent_pid=os.getpid(), environ=environ)
    wiring = _Wiring(planned.specs)
    specs = [wiring.rewired(spec, shape.worker_command) for spec in planned.specs]
    specs = [wiring.admitting(spec) for spec in specs]
    cluster = ChaosCluster(planned, specs, wiring.edges, data)
    for edge in wiring.edges:
        await edge.open()
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(cluster.run())
            try:
                async with asyncio.timeout(START_LIMIT_S):
                    await cluster.started.wait()
                yield cluster
            finally:
                cluster.supervisor.ask_to_stop()
                async with asyncio.timeout(STOP_LIMIT_S):
                    await running
    finally:
        for edge in wiring.edges:
            await edge.aclose()


class _Wiring:
    """The addresses that processes are given lead over edges."""

    def __init__(self, specs: Sequence[ProcessSpec]) -> None:
        self._owners = {spec.seat.port: spec.seat.name for spec in specs}
        self._by_ends: dict[tuple[str | None, str], Edge] = {}
        self._edge(None, Kind.API, next(spec.seat.port for spec in specs if spec.seat.kind is Kind.API))

    @property
    def edges(self) -> list[Edge]:
        return list(self._by_ends.values())

    def rewired(self, spec: ProcessSpec, worker_command: Sequence[str]) -> ProcessSpec:
        if spec.seat.kind is Kind.REDIS:
            return spec
        environment = {
            name: value if name.endswith(OWN_ADDRESS) else self._rewired(value, spec.seat.name)
            for name, value in spec.environment.items()
        }
        command = spec.command
        if spec.seat.kind is Kind.WORKER and worker_command:
            command = (sys.executable, *worker_command)
        return replace(spec, environment=environment, command=command)

    def admitting(self, spec: ProcessSpec) -> ProcessSpec:
        """Workers join a coordinator at addresses of their own: it has to know these."""
        if spec.seat.kind is not Kind.COORDINATOR:
            return spec
        urls = [f"http://{HOST}:{edge.port}" for edge in self.edges if edge.callee == spec.seat.name]
        return replace(spec, environment={**spec.environment, "BUTTERFLY_COORDINATION__JOIN_URLS": ",".join(urls)})

    def _rewired(self, value: str, caller: str) -> str:
        def over_edge(found: re.Match[str]) -> str:
            port = int(found[1])
            callee = self._owners.get(port)
            if callee is None:
                return found[0]
            # An address of its own is what it tells others: they share an edge.
            return f"{HOST}:{self._edge(None if callee == caller else caller, callee, port).port}"

        return _PORT.sub(over_edge, value)

    def _edge(self, caller: str | None, callee: str, port: int) -> Edge:
        ends = (caller, callee)
        if ends not in self._by_ends:
            self._by_ends[ends] = Edge(caller, callee, port)
        return self._by_ends[ends]
