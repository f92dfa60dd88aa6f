"""Worker processes of a cluster, started and ended one by one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.cluster import Cluster
from services.cli.domain.environment import join_environment
from services.cli.stores.data_dir import DataDir

PREPARED_LIMIT_S = 300.0
WORKER_OFFSET = 10  # of the ports of `butterfly up`


class Workers:
    """Started again at once when wanted: the pauses of `butterfly up` are not what is measured."""

    def __init__(self, cluster: Cluster, *, memory_mb: int, module: str = "services.worker") -> None:
        """`module`: what is run as a worker."""
        self._cluster, self._memory_mb, self._module = cluster, memory_mb, module
        self._base_port = int(cluster.api_url.rpartition(":")[2]) + WORKER_OFFSET
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes.values()]

    def start(self, index: int) -> int:
        """Returns its pid."""
        port, data_dir = self._base_port + index, self._cluster.data_dir / f"worker-{index}"
        data_dir.mkdir(exist_ok=True)
        environment = join_environment(
            coordinator_url=self._cluster.coordinator_url,
            join_token=DataDir(self._cluster.data_dir).secrets().join_token,
            listen=f"127.0.0.1:{port}",
            advertise=None,
            data_dir=str(data_dir),
            memory_mb=self._memory_mb,
            inherited=os.environ,
        )
        with (data_dir / "worker.log").open("ab") as log:
            process = self._processes[port] = subprocess.Popen(
                [sys.executable, "-m", self._module],
                env={**os.environ, **environment, "BUTTERFLY_PARENT_PID": str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return process.pid

    def signal(self, port: int, number: signal.Signals) -> None:
        self._processes[port].send_signal(number)

    def renew(self, port: int) -> None:
        """End whatever is left of this worker, and start it again."""
        self._processes[port].kill()
        self._processes[port].wait()
        self.start(port - self._base_port)

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


@contextmanager
def workers_of(cluster: Cluster, count: int, *, memory_mb: int, module: str = "services.worker") -> Iterator[Workers]:
    workers = Workers(cluster, memory_mb=memory_mb, module=module)
    try:
        for index in range(count):
            workers.start(index)
        yield workers
    finally:
        workers.end()


def wait_prepared(cluster: Cluster, *, workers: int, stages: int) -> None:
    """Every worker has tested every stage, as in a small cluster that has been idle for a minute or two."""
    end_s = time.monotonic() + PREPARED_LIMIT_S
    while len(list(cluster.data_dir.glob("worker-*/stages/*.selftest.json"))) < workers * stages:
        if time.monotonic() > end_s:
            raise RuntimeError("the workers did not prepare")
        time.sleep(0.5)
