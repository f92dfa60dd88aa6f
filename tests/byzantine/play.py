"""`python -m tests.byzantine.play [ATTACK …]`: honest workers and one liar run real tasks; prints what became of it.

Each attack gets a cluster of its own: three honest workers, three stages, and a fourth worker that lies. The tokens of
every verified task are compared with those an honest cluster gives. Exit code 1 if a wrong token was committed, an
honest worker was evicted, or a liar that can be proven guilty was not.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from services.cli.domain.environment import join_environment
from services.cli.stores.data_dir import DataDir
from tests.byzantine.attacks import ATTACKS
from tests.e2e.running import HOST, Cluster, end_cluster, start_cluster, until
from tests.fakes.free_ports import free_base_port

HONEST_WORKERS = 3
STAGES = 3
NUM_TOKENS = 24
PROMPTS = ("The capital of France is", "Water boils at", "Once upon a time")
ANSWER_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    attack: str
    liar: str
    answers: tuple[str, ...]
    states: dict[str, str]
    """Of every node that is still listed, by id."""
    reason: str
    """Why the liar is where it is."""

    @property
    def liar_state(self) -> str:
        return self.states.get(self.liar, "gone")

    @property
    def honest_evicted(self) -> int:
        return sum(state == "evicted" for node_id, state in self.states.items() if node_id != self.liar)


@contextmanager
def honest_cluster(model: Path, folder: Path) -> Iterator[Cluster]:
    cluster = start_cluster(
        model, folder, base_port=free_base_port(HONEST_WORKERS + 2), workers=HONEST_WORKERS, stages=STAGES
    )
    try:
        yield cluster
    finally:
        end_cluster(cluster)


@contextmanager
def lying_worker(cluster: Cluster, *attack: str, number: int = 0) -> Iterator[str]:
    """Joins the cluster; gives the liar's node id. `attack`: arguments of the worker; `number`: tells liars apart."""
    honest = set(nodes(cluster))
    name = f"liar{number or ''}"
    base_port = int(cluster.api_url.rpartition(":")[2])
    data_dir = cluster.data_dir / name
    environment = join_environment(
        coordinator_url=f"http://{HOST}:{base_port + 3}",
        join_token=DataDir(cluster.data_dir).secrets().join_token,
        listen=f"{HOST}:{base_port + 10 + HONEST_WORKERS + number}",
        advertise=None,
        data_dir=str(data_dir),
        memory_mb=None,
        inherited=os.environ,
    )
    command = [sys.executable, "-m", "tests.byzantine.lying_worker", *attack]
    log_file = cluster.data_dir / f"{name}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT)
    try:
        until(lambda: set(nodes(cluster)) > honest or process.poll() is not None)
        assert process.poll() is None, log_file.read_text()
        (liar,) = set(nodes(cluster)) - honest
        yield liar
    finally:
        process.kill()
        process.wait()


def nodes(cluster: Cluster) -> dict[str, dict[str, Any]]:
    listed = httpx.get(f"{cluster.api_url}/v1/nodes", trust_env=False).json()["data"]
    return {node["node_id"]: node for node in listed}


def answer(cluster: Cluster, prompt: str) -> str:
    """Of a verified task; greedy."""
    body = {
        "model": cluster.model,
        "prompt": prompt,
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "butterfly": {"verification": "audit"},
    }
    reply = httpx.post(f"{cluster.api_url}/v1/completions", json=body, timeout=ANSWER_LIMIT_S, trust_env=False)
    assert reply.status_code == 200, reply.text
    text: str = reply.json()["choices"][0]["text"]
    return text


def play(model: Path, attack: str, folder: Path) -> Outcome:
    with honest_cluster(model, folder) as cluster, lying_worker(cluster, attack) as liar:
        answers = tuple(answer(cluster, prompt) for prompt in PROMPTS)
        seen = nodes(cluster)
        states = {node_id: str(node["state"]) for node_id, node in seen.items()}
        return Outcome(attack, liar, answers, states, str(seen.get(liar, {}).get("reason", "")))


def honest_answers(model: Path, folder: Path) -> tuple[str, ...]:
    with honest_cluster(model, folder) as cluster:
        return tuple(answer(cluster, prompt) for prompt in PROMPTS)


def faults_of(outcome: Outcome, expected: tuple[str, ...]) -> list[str]:
    """What should not have been."""
    faults = []
    if outcome.answers != expected:
        faults.append("WRONG TOKENS")
    if outcome.honest_evicted:
        faults.append(f"{outcome.honest_evicted} HONEST EVICTED")
    if ATTACKS[outcome.attack].is_convicted and outcome.liar_state != "evicted":
        faults.append("NOT CONVICTED")
    return faults


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.byzantine.play", description=__doc__)
    parser.add_argument("attacks", nargs="*", default=list(ATTACKS), help="default: all", metavar="ATTACK")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.attacks if name not in ATTACKS]
    if unknown:
        parser.error(f"unknown attack {unknown[0]}; there are {', '.join(ATTACKS)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        expected = honest_answers(asked.model, folder / "honest")
        print(f"{HONEST_WORKERS} honest workers: {expected[0]!r}")
        num_bad = 0
        for name in asked.attacks:
            outcome = play(asked.model, name, folder / name)
            faults = faults_of(outcome, expected)
            num_bad += bool(faults)
            print(f"\n{name}: a fourth worker {ATTACKS[name].says}")
            print(f"  answers  {'as without it' if outcome.answers == expected else outcome.answers}")
            print(f"  liar     {outcome.liar} is {outcome.liar_state}{': ' * bool(outcome.reason)}{outcome.reason}")
            print(f"  verdict  {', '.join(faults) or 'as it should be'}", flush=True)
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
