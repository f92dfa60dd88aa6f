"""Workers for tests: in this process with synthetic engines, or as processes with the real one. All HTTP is real."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from services.worker.app import assemble
from services.worker.ports import EngineLoader
from shared.domain.ids import NodeId
from shared.runtime.clock import SystemClock
from shared.runtime.config import Config, load_config
from tests.fakes.coordinator import JOIN_TOKEN, FakeCoordinator
from tests.fakes.engine import NUMERICS_CLASS, SyntheticLoader
from tests.integration.runtime.served import served

ROOT = Path(__file__).parents[3]


@dataclass
class InProcess:
    """A worker served in this event loop."""

    node_id: NodeId
    url: str
    app: FastAPI
    loader: SyntheticLoader


@asynccontextmanager
async def serving_coordinator(model: Path) -> AsyncIterator[FakeCoordinator]:
    coordinator = FakeCoordinator(model)
    async with served(coordinator.app()) as url:
        coordinator.url = url
        yield coordinator


@asynccontextmanager
async def worker_in_process(
    coordinator: FakeCoordinator,
    data_dir: Path,
    *,
    loader: EngineLoader | None = None,
    numerics_class: str = NUMERICS_CLASS,
) -> AsyncIterator[InProcess]:
    """`loader`: None for synthetic engines."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    synthetic = SyntheticLoader()
    app = assemble(
        _config(coordinator, address, data_dir),
        loader=loader or synthetic,
        numerics_class=numerics_class,
        clock=SystemClock(),
    )
    settings = uvicorn.Config(app, http="httptools", lifespan="on", access_log=False, log_config=None)
    server = uvicorn.Server(settings)
    running = asyncio.create_task(server._serve(sockets=[listener]))  # `serve` would take over the signals of pytest
    node_id = NodeId("")
    try:
        await coordinator.until(lambda: any(node.address == f"http://{address}" for node in coordinator.nodes.values()))
        node_id = next(key for key, node in coordinator.nodes.items() if node.address == f"http://{address}")
        yield InProcess(node_id, f"http://{address}", app, synthetic)
    finally:
        app.state.draining.set()
        server.should_exit = True
        await running


@asynccontextmanager
async def workers_in_process(coordinator: FakeCoordinator, count: int, folder: Path) -> AsyncIterator[list[InProcess]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(worker_in_process(coordinator, folder / f"worker{number}"))
            for number in range(count)
        ]


@dataclass
class Process:
    """A worker as `python -m services.worker`."""

    node_id: NodeId
    url: str
    running: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.running.kill()
        self.running.wait()


@asynccontextmanager
async def worker_processes(coordinator: FakeCoordinator, count: int, folder: Path) -> AsyncIterator[list[Process]]:
    """Real workers, ended with the block."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for number in range(count):
            address = f"127.0.0.1:{_free_port()}"
            environment = _environment(coordinator.url, address, folder / f"worker{number}")
            started[address] = await asyncio.to_thread(
                subprocess.Popen, [sys.executable, "-m", "services.worker"], cwd=ROOT, env={**os.environ, **environment}
            )
        await coordinator.wait_for_nodes(count)
        by_address = {node.address: node_id for node_id, node in coordinator.nodes.items()}
        yield [
            Process(by_address[f"http://{address}"], f"http://{address}", running)
            for address, running in started.items()
        ]
    finally:
        for running in started.values():
            running.send_signal(signal.SIGTERM)
        for running in started.values():
            try:
                await asyncio.to_thread(running.wait, 10)
            except subprocess.TimeoutExpired:
                running.kill()
                raise


async def refused_process(coordinator_url: str, data_dir: Path, *, join_token: str) -> tuple[int, str]:
    """Exit code and last line on standard error of a worker that ends by itself."""
    environment = _environment(coordinator_url, f"127.0.0.1:{_free_port()}", data_dir)
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.worker", cwd=ROOT, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment, "BUTTERFLY_SECURITY__JOIN_TOKEN": join_token},
    )  # fmt: skip
    try:
        async with asyncio.timeout(20):
            _, stderr = await running.communicate()
    finally:
        if running.returncode is None:
            running.kill()
            await running.communicate()
    assert running.returncode is not None
    return running.returncode, stderr.decode().splitlines()[-1]


def _config(coordinator: FakeCoordinator, address: str, data_dir: Path) -> Config:
    return load_config(None, _environment(coordinator.url, address, data_dir))


def _environment(coordinator_url: str, address: str, data_dir: Path) -> dict[str, str]:
    return {
        "BUTTERFLY_NETWORK__LISTEN_ADDRESS": address,
        "BUTTERFLY_SERVICES__COORDINATOR_URL": coordinator_url,
        "BUTTERFLY_SECURITY__JOIN_TOKEN": JOIN_TOKEN,
        "BUTTERFLY_WORKER__DATA_DIR": str(data_dir),
        "BUTTERFLY_WORKER__SLOTS": "8",
        "BUTTERFLY_WORKER__CONTEXT_TOKENS": "256",
        "BUTTERFLY_WORKER__MEMORY_MB": "1000",
        "BUTTERFLY_LOGGING__LEVEL": "WARNING",
        "BUTTERFLY_PARENT_PID": str(os.getpid()),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
