"""`butterfly up` as a real process, for tests."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_LIMIT_S = 180.0
STOP_LIMIT_S = 60.0
HOST = "127.0.0.1"
EQUAL_WORKERS = {"BUTTERFLY_COORDINATION__SPEEDS": "declared"}
"""What workers of one machine are found to do differs, and plans with it; most tests want to know who sits where."""


@dataclass(frozen=True, slots=True)
class Cluster:
    api_url: str
    model: str
    data_dir: Path
    pid: int
    """Of `butterfly up`."""
    process: "subprocess.Popen[bytes]"
    output: Path
    """What `up` printed."""

    def butterfly(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run another command on this cluster."""
        return butterfly(*arguments, "--data-dir", str(self.data_dir))

    def status(self) -> dict[str, Any]:  # JSON as a program that reads it gets it
        done = self.butterfly("status", "--json")
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def pids(self) -> dict[str, int]:
        return {process["name"]: process["pid"] for process in self.status()["processes"]}

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        return self.process.wait(STOP_LIMIT_S)


def butterfly(*arguments: str, environ: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "services.cli", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=START_LIMIT_S,
        env={**os.environ, **(environ or {})},
    )


def start_cluster(
    model: Path,
    data_dir: Path,
    *,
    base_port: int,
    workers: int,
    stages: int,
    environ: Mapping[str, str] | None = None,
    replicas: str = "",
) -> Cluster:
    """Returns once the cluster says that it is ready. `environ`: beside the environment of this process. `replicas`: as
    `--replicas` of `butterfly up`."""
    models = data_dir / "models"
    models.mkdir(parents=True)
    (models / model.name).symlink_to(model)
    output = data_dir / "up.out"
    command = [sys.executable, "-m", "services.cli", "up", "--workers", str(workers), "--stages", str(stages)]
    command += ["--base-port", str(base_port), "--data-dir", str(data_dir), "--model", model.stem]
    if replicas:
        command += ["--replicas", replicas]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **EQUAL_WORKERS, **(environ or {})},
        )
    cluster = Cluster(f"http://{HOST}:{base_port}", model.stem, data_dir, process.pid, process, output)
    try:
        until(lambda: "Butterfly is ready" in output.read_text() or process.poll() is not None, limit_s=START_LIMIT_S)
        assert process.poll() is None, f"the cluster did not start:\n{output.read_text()}"
    except BaseException:
        end_cluster(cluster)
        raise
    return cluster


def end_cluster(cluster: Cluster) -> None:
    """Whatever state it is in."""
    if cluster.process.poll() is None:
        cluster.interrupt()
        try:
            cluster.wait()
        except subprocess.TimeoutExpired:
            cluster.process.kill()
            cluster.process.wait()
            raise


def until(condition: Callable[[], bool], *, limit_s: float = STOP_LIMIT_S, every_s: float = 0.05) -> None:
    """Wait for what happens in other processes."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"did not happen within {limit_s:g} s"
        time.sleep(every_s)


def is_alive(pid: int) -> bool:
    """Also False for a process that has ended and only waits to be reaped by init."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
