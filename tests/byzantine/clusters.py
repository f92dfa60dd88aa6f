"""Clusters of honest workers, the worker that lies among them, and the tasks that all of them run."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from services.cli.domain.cluster import Kind, port_of
from services.cli.domain.environment import join_environment
from services.cli.stores.data_dir import DataDir
from shared.domain.signing import SigningKey
from shared.domain.task import SamplerParams
from tests.byzantine.roles import RANKS, STAGES, Cell
from tests.e2e.running import HOST, Cluster, end_cluster, start_cluster, until
from tests.e2e.tokens import Gateway, expected_tokens, generated_tokens
from tests.fakes.free_ports import free_base_port
from tests.integration.engine.stages import Chain

HONEST_WORKERS = 3
MAX_OTHERS = 32  # ports kept free for workers that join later
MEMORY_MB = 1_024  # of every worker alike: unequal nodes are not seated by their ids
NUM_TOKENS = 24
SETTINGS: Mapping[str, str] = {
    "BUTTERFLY_WORKER__MEMORY_MB": str(MEMORY_MB),
    "BUTTERFLY_COORDINATION__PHASE_TIMEOUT_MS": "2000",
    "BUTTERFLY_COORDINATION__CHECKPOINT_INTERVAL": "4",
    "BUTTERFLY_COORDINATION__WINDOW_CHECKPOINTS": "2",
}
"""Short waits for those that say nothing, and short windows: several in each answer."""
_KEY_FILE = "node_key"


@dataclass(frozen=True, slots=True)
class Question:
    prompt: tuple[int, ...]
    sampling: Mapping[str, float] = field(default_factory=lambda: {"temperature": 0})

    def expected(self, whole: Chain) -> list[int]:
        """The answer of the whole model in one process."""
        return expected_tokens(whole, self.prompt, SamplerParams(**self.sampling), num_tokens=NUM_TOKENS)  # type: ignore[arg-type]  # the API's names are the sampler's

    def ask(self, cluster: Gateway) -> list[int] | str:
        """What the cluster committed; why it did not answer."""
        try:
            return generated_tokens(cluster, self.prompt, self.sampling, num_tokens=NUM_TOKENS)
        except (AssertionError, httpx.HTTPError) as error:
            return str(error) or type(error).__name__


QUESTIONS = (
    Question((504, 3575, 282, 4649, 314)),  # "The capital of France is"
    Question(tuple((11 * i) % 5000 + 300 for i in range(70))),  # two chunks
    Question((504, 3575, 282, 4649, 314), {"temperature": 0.9, "top_p": 0.95, "top_k": 60, "seed": 1234}),
)


def oracle(model: Path) -> tuple[list[int], ...]:
    """The right answers: the whole model in one process."""
    whole = Chain.open([model])
    try:
        return tuple(question.expected(whole) for question in QUESTIONS)
    finally:
        whole.close()


def ask_all(cluster: Gateway) -> list[list[int] | str]:
    """All questions at once."""
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        return list(pool.map(lambda question: question.ask(cluster), QUESTIONS))


@contextmanager
def honest_cluster(model: Path, folder: Path, *, tail_audit_fraction: float = 0.0) -> Iterator[Cluster]:
    cluster = start_cluster(
        model,
        folder,
        base_port=free_base_port(HONEST_WORKERS + MAX_OTHERS),
        workers=HONEST_WORKERS,
        stages=STAGES,
        environ={**SETTINGS, "BUTTERFLY_COORDINATION__TAIL_AUDIT_FRACTION": str(tail_audit_fraction)},
    )
    try:
        yield cluster
    finally:
        end_cluster(cluster)


def url_of(cluster: Cluster, kind: Kind) -> str:
    return f"http://{HOST}:{port_of(_base_port(cluster), kind)}"


def join_token(cluster: Cluster) -> str:
    return DataDir(cluster.data_dir).secrets().join_token


def nodes(cluster: Gateway) -> dict[str, dict[str, Any]]:  # JSON as a program that reads it gets it
    listed = httpx.get(f"{cluster.api_url}/v1/nodes", trust_env=False).json()["data"]
    return {node["node_id"]: node for node in listed}


def states(cluster: Gateway) -> dict[str, str]:
    return {node_id: str(node["state"]) for node_id, node in nodes(cluster).items()}


def key_for(cell: Cell, others: Sequence[str], data_dir: Path) -> str:
    """Put a signing key into `data_dir` that gives the node that seat among `others`; returns the node's id. A node
    chooses its key, so it can choose its place in the order of ids."""
    while True:
        key = SigningKey.generate()
        if sum(other < key.node_id for other in others) == RANKS[cell]:
            break
    put_key(key, data_dir)
    return str(key.node_id)


def put_key(key: SigningKey, data_dir: Path) -> None:
    """Before the worker of that data folder starts for the first time."""
    data_dir.mkdir(parents=True)
    file = data_dir / _KEY_FILE
    file.touch(mode=0o600)
    file.write_bytes(key.secret)


@contextmanager
def joined_worker(
    cluster: Cluster, command: Sequence[str], data_dir: Path, *, number: int
) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker beside those of the cluster; `number`: its own among them. Ended at the end, however it takes it."""
    environment = join_environment(
        coordinator_url=url_of(cluster, Kind.COORDINATOR),
        join_token=join_token(cluster),
        listen=f"{HOST}:{port_of(_base_port(cluster), Kind.WORKER) + HONEST_WORKERS + number}",
        advertise=None,
        data_dir=str(data_dir),
        memory_mb=MEMORY_MB,
        inherited=os.environ,
    )
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_ready(cluster: Cluster, node_id: str, process: "subprocess.Popen[bytes]", data_dir: Path) -> None:
    until(lambda: states(cluster).get(node_id) == "ready" or process.poll() is not None)
    assert process.poll() is None, (data_dir / "worker.log").read_text()


def _base_port(cluster: Cluster) -> int:
    return int(cluster.api_url.rpartition(":")[2])
