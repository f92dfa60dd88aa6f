"""What verified answers cost: `make bench-verification`.

One cluster of four workers and three stages answers the same load unverified, audited (f = 1) and by quorum (2f+1
lanes), interleaved. Reports tokens per second as clients see them and the CPU seconds of the workers per committed
token. Prints a table and stores everything under bench/results/.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.cluster import Cluster, running_cluster
from bench.measure import Load, commit, machine

ROOT = Path(__file__).parent.parent
MODES = ("none", "audit", "quorum")
SEQUENCES = (1, 4, 16)
PROMPT = 8
NUM_TOKENS = 120  # three windows of full size follow the small ones


@dataclass(frozen=True, slots=True)
class Cost:
    mode: str
    sequences: int
    decode_tokens_per_s: float
    cpu_s_per_token: float
    """Of all workers."""


def cpu_s(pids: list[int]) -> float:
    """User and system time of these processes so far. Linux only."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(cluster: Cluster, pids: list[int], mode: str, sequences: int, load: Load) -> Cost:
    before_s = cpu_s(pids)
    rates = cluster.measure(sequences, load, mode)
    # Three requests each: two of one token, one of all.
    num_tokens = sequences * (load.num_tokens + 3)
    return Cost(mode, sequences, rates.decode_tokens_per_s, (cpu_s(pids) - before_s) / num_tokens)


def table(costs: list[Cost]) -> str:
    lines = ["| mode | sequences | tok/s | CPU ms per token | CPU, ratio to none (min-max) |", "| --- |" + " --- |" * 4]
    for sequences in SEQUENCES:
        rounds = {mode: [cost for cost in costs if (cost.mode, cost.sequences) == (mode, sequences)] for mode in MODES}
        for mode in MODES:
            pairs = zip(rounds[mode], rounds["none"], strict=True)
            ratios = [cost.cpu_s_per_token / base.cpu_s_per_token for cost, base in pairs]
            speed = statistics.median(cost.decode_tokens_per_s for cost in rounds[mode])
            spent_ms = 1000 * statistics.median(cost.cpu_s_per_token for cost in rounds[mode])
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            lines.append(f"| {mode} | {sequences} | {speed:.0f} | {spent_ms:.1f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / ".butterfly/models/smollm2-135m.gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base-port", type=int, default=28080)
    options = parser.parse_args()
    prompt = [(7 * i) % 4096 + 300 for i in range(PROMPT)]
    load = Load(long_prompt=prompt, short_prompt=prompt, num_tokens=NUM_TOKENS)
    before = machine()
    costs: list[Cost] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running_cluster(
            workers=4, stages=3, base_port=options.base_port, data_dir=Path(folder) / "cluster", model=options.model
        ) as cluster,
    ):
        pids = cluster.worker_pids()
        for number in range(options.rounds + 1):
            for sequences in SEQUENCES:
                for mode in MODES:
                    cost = measure(cluster, pids, mode, sequences, load)
                    if number:
                        costs.append(cost)
                        print(f"round {number}  {cost}", flush=True)
    result = {
        "commit": commit(),
        "model": options.model.stem,
        "machine": before,
        "decoded_tokens": NUM_TOKENS,
        "rounds": options.rounds,
        "costs": [asdict(cost) for cost in costs],
    }
    path = ROOT / "bench" / "results" / time.strftime("verification-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(costs))
    print("stored:", path.relative_to(ROOT))


if __name__ == "__main__":
    main()
