"""A cluster of real processes whose workers run the synthetic engine: `butterfly up` without workers, and these."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from services.cli.domain.cluster import ONE_EACH, Kind, port_of
from services.cli.domain.environment import join_environment
from services.cli.stores.data_dir import DataDir, Secrets
from shared.domain.ids import ModelId
from tests.e2e.running import HOST, START_LIMIT_S, STOP_LIMIT_S, until
from tests.fakes.engine import SyntheticModel
from tests.fakes.free_ports import free_base_port
from tests.fakes.tiny_models import write_tiny_model

NUM_LAYERS = 6
MODEL = SyntheticModel(NUM_LAYERS)
MODEL_ID = ModelId("synthetic")
SPARE_PORTS = 1
"""Beside those of the honest workers, for a worker that joins later."""

CONTROL_SETTINGS = {
    # As small as windows get, so that there are many.
    "BUTTERFLY_COORDINATION__CHECKPOINT_INTERVAL": "1",
    "BUTTERFLY_COORDINATION__WINDOW_CHECKPOINTS": "2",
    "BUTTERFLY_COORDINATION__SPEEDS": "declared",
    "BUTTERFLY_COORDINATION__HEARTBEAT_MS": "250",
    "BUTTERFLY_COORDINATION__LEASE_MS": "5000",
    "BUTTERFLY_LOGGING__LEVEL": "WARNING",
}
WORKER_SETTINGS = {
    "BUTTERFLY_WORKER__SLOTS": "32",
    "BUTTERFLY_WORKER__CONTEXT_TOKENS": "256",
    "BUTTERFLY_WORKER__THREADS": "1",
    "BUTTERFLY_LOGGING__LEVEL": "ERROR",
}


@dataclass(frozen=True, slots=True)
class SyntheticCluster:
    data_dir: Path
    base_port: int
    num_workers: int
    secrets: Secrets
    worker_module: str
    worker_processes: list["subprocess.Popen[bytes]"]

    @property
    def redis_url(self) -> str:
        return f"redis://{HOST}:{port_of(self.base_port, Kind.REDIS)}/0"

    @property
    def spare_address(self) -> str:
        return f"{HOST}:{port_of(self.base_port, Kind.WORKER) + self.num_workers}"

    def url(self, kind: Kind, index: int = 0) -> str:
        return f"http://{HOST}:{port_of(self.base_port, kind, index)}"

    def start_worker(self, index: int) -> None:
        data = DataDir(self.data_dir)
        listen = f"{HOST}:{port_of(self.base_port, Kind.WORKER) + index}"
        environment = self.worker_environment(listen, data.worker(index))
        log = data.logs / f"worker-{index}.log"
        self.worker_processes.append(_start([sys.executable, "-m", self.worker_module], environment, log))

    def worker_environment(self, listen: str, data_dir: Path) -> dict[str, str]:
        """What a worker needs to join, beside what it inherits."""
        joining = join_environment(
            coordinator_url=self.url(Kind.COORDINATOR),
            join_token=self.secrets.join_token,
            listen=listen,
            advertise=None,
            data_dir=str(data_dir),
            memory_mb=1_000,
            inherited=os.environ,
        )
        return {**joining, **WORKER_SETTINGS}


@contextmanager
def synthetic_cluster(
    folder: Path,
    *,
    workers: int,
    stages: int,
    replicas: Mapping[Kind, int] = ONE_EACH,
    settings: Mapping[str, str] = MappingProxyType({}),
    worker_module: str = "tests.synthetic.worker",
) -> Iterator[SyntheticCluster]:
    """The processes have started; the workers join in a moment. `settings`: of the control plane, beside those here."""
    data = DataDir(folder)
    data.prepare()
    write_tiny_model(data.models / f"{MODEL_ID}.gguf", num_layers=NUM_LAYERS)
    base_port = free_base_port(workers + SPARE_PORTS, replicas)
    started: list[subprocess.Popen[bytes]] = []
    joined: list[subprocess.Popen[bytes]] = []
    try:
        command = [sys.executable, "-m", "services.cli", "up", "--workers", "0", "--stages", str(stages)]
        command += ["--base-port", str(base_port), "--data-dir", str(folder), "--model", MODEL_ID]
        if replicas:
            command += ["--replicas", ",".join(f"{kind}={count}" for kind, count in replicas.items())]
        output = folder / "up.out"
        started.append(_start(command, {**CONTROL_SETTINGS, **settings}, output))
        until(lambda: "not placed" in output.read_text() or started[0].poll() is not None, limit_s=START_LIMIT_S)
        assert started[0].poll() is None, output.read_text()
        cluster = SyntheticCluster(folder, base_port, workers, data.secrets(), worker_module, worker_processes=joined)
        for index in range(workers):
            cluster.start_worker(index)
        yield cluster
    finally:
        for process in reversed([*started, *joined]):
            process.terminate()
        for process in [*started, *joined]:
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def _start(command: list[str], settings: Mapping[str, str], output: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "BUTTERFLY_PARENT_PID": str(os.getpid()), **settings}
    with output.open("wb") as file:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
