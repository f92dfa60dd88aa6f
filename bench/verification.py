"""What verified answers cost: `make bench-verification`.

For each weight type, one cluster of four workers and three stages answers the same load unverified, audited (f = 1) and
by quorum (2f+1 lanes), interleaved. Reports tokens per second as clients see them, the CPU seconds of the workers per
committed token, and how long the first token of a commit waits between its draft and the commit. Prints a table and
stores everything under bench/results/.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from bench.cluster import Cluster, running_cluster
from bench.measure import commit, machine
from bench.requantise import requantise

ROOT = Path(__file__).parent.parent
MODES = ("none", "audit", "quorum")
SEQUENCES = (1, 4, 16)
PROMPT = 32
NUM_TOKENS = 121  # after the small windows at the start two of full size
WAIT = "butterfly_draft_to_commit_seconds"


@dataclass(frozen=True, slots=True)
class Cost:
    weights: str
    mode: str
    sequences: int
    tokens_per_s: float
    """From the first request to the last token."""
    cpu_s_per_token: float
    """Of all workers."""
    commit_wait_s: float
    """Mean over the commits: from the draft of its first token on."""


@dataclass(frozen=True, slots=True)
class _Reading:
    at_s: float
    cpu_s: float
    waited_s: float
    commits: float


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time of these processes so far. Linux only."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(cluster: Cluster, pids: Sequence[int], weights: str, mode: str, sequences: int) -> Cost:
    prompt = [(7 * i) % 4096 + 300 for i in range(PROMPT)]
    before = _read(cluster, pids)
    cluster.answer_all(sequences, prompt, NUM_TOKENS, mode)
    after = _read(cluster, pids)
    num_tokens = sequences * NUM_TOKENS
    return Cost(
        weights=weights,
        mode=mode,
        sequences=sequences,
        tokens_per_s=num_tokens / (after.at_s - before.at_s),
        cpu_s_per_token=(after.cpu_s - before.cpu_s) / num_tokens,
        commit_wait_s=(after.waited_s - before.waited_s) / (after.commits - before.commits),
    )


def table(costs: Sequence[Cost]) -> str:
    lines = [
        "| weights | sequences | mode | tok/s | CPU ms per token | CPU, ratio to none (min-max) | draft to commit |",
        "| --- |" + " --- |" * 6,
    ]
    for weights in dict.fromkeys(cost.weights for cost in costs):
        for sequences in SEQUENCES:
            rounds = {
                mode: [c for c in costs if (c.weights, c.mode, c.sequences) == (weights, mode, sequences)]
                for mode in MODES
            }
            lines += (_line(rounds[mode], rounds["none"]) for mode in MODES)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / ".butterfly/models/smollm2-135m.gguf", help="a GGUF file")
    parser.add_argument("--weights", nargs="*", default=["q4_1", "q4_0"], help="types to requantise it to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base-port", type=int, default=28080)
    options = parser.parse_args()
    before = machine()
    costs: list[Cost] = []
    with tempfile.TemporaryDirectory() as folder:
        for weights in options.weights:
            model = Path(folder) / f"{options.model.stem}-{weights}.gguf"
            requantise(options.model, model, weights)
            costs += _measure_all(model, weights, options.rounds, options.base_port, Path(folder) / weights)
    result = {
        "commit": commit(),
        "model": options.model.stem,
        "machine": before,
        "tokens": NUM_TOKENS,
        "rounds": options.rounds,
        "costs": [asdict(cost) for cost in costs],
    }
    path = ROOT / "bench" / "results" / time.strftime("verification-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(costs))
    print("stored:", path.relative_to(ROOT))


def _measure_all(model: Path, weights: str, rounds: int, base_port: int, data_dir: Path) -> list[Cost]:
    """`rounds` rounds after one that is thrown away."""
    costs: list[Cost] = []
    with running_cluster(workers=4, stages=3, base_port=base_port, data_dir=data_dir, model=model) as cluster:
        pids = cluster.worker_pids()
        for number in range(rounds + 1):
            for sequences in SEQUENCES:
                for mode in MODES:
                    cost = measure(cluster, pids, weights, mode, sequences)
                    if number:
                        costs.append(cost)
                        print(f"round {number}  {cost}", flush=True)
    return costs


def _read(cluster: Cluster, pids: Sequence[int]) -> _Reading:
    series = dict(
        line.split(" ", 1)
        for line in httpx.get(f"{cluster.coordinator_url}/metrics", trust_env=False).text.splitlines()
        if line.startswith((f"{WAIT}_sum", f"{WAIT}_count"))
    )
    return _Reading(time.perf_counter(), cpu_s(pids), float(series[f"{WAIT}_sum"]), float(series[f"{WAIT}_count"]))


def _line(costs: Sequence[Cost], base: Sequence[Cost]) -> str:
    ratios = [cost.cpu_s_per_token / none.cpu_s_per_token for cost, none in zip(costs, base, strict=True)]
    speed = statistics.median(cost.tokens_per_s for cost in costs)
    spent_ms = 1000 * statistics.median(cost.cpu_s_per_token for cost in costs)
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    waited_s = statistics.median(cost.commit_wait_s for cost in costs)
    one = costs[0]
    return (
        f"| {one.weights} | {one.sequences} | {one.mode} | {speed:.0f} | {spent_ms:.1f} | {spread} | {waited_s:.2f} s |"
    )


if __name__ == "__main__":
    main()
