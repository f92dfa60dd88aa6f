"""`make bench`: what does cutting cost, and what do the services around it cost?

Compares, interleaved in one run on the same cores: the whole model in one process (the baseline), three stages in one
process, and three worker processes over HTTP behind the gateway. Prints a table and stores everything under
bench/results/.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

# Before libllama loads: its barriers would spin against the cluster's (docs/decisions/0006).
os.environ.setdefault("GOMP_SPINCOUNT", "300")

from bench.cluster import running_cluster
from bench.engines import Chain
from bench.measure import Load, as_json, commit, interleave, machine, table
from shared.llama.cutting import open_model
from shared.llama.library import load_library

ROOT = Path(__file__).parent.parent
SEQUENCES = (1, 4, 16)
LONG_PROMPT = 128
SHORT_PROMPT = 8
NUM_TOKENS = 64
ROWS_PER_SLOT = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / ".butterfly/models/smollm2-135m.gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base-port", type=int, default=28080)
    options = parser.parse_args()
    prompt = [(7 * i) % 4096 + 300 for i in range(LONG_PROMPT)]  # any ids do: the cost does not depend on them
    load = Load(long_prompt=prompt, short_prompt=prompt[:SHORT_PROMPT], num_tokens=NUM_TOKENS)
    num_layers = open_model(options.model).num_layers
    thirds = [0, num_layers // 3, 2 * num_layers // 3, num_layers]
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        library = load_library()
        whole = Chain(library, options.model, [0, num_layers], Path(folder), slots=16, rows=ROWS_PER_SLOT)
        chain = Chain(library, options.model, thirds, Path(folder), slots=16, rows=ROWS_PER_SLOT)
        cluster_options = {"workers": 3, "stages": 3, "base_port": options.base_port, "model": options.model}
        data_dir = Path(folder) / "cluster"
        with running_cluster(data_dir=data_dir, **cluster_options) as cluster:
            cold_start_s = cluster.startup_s
            summaries = interleave(
                [
                    ("whole model, one process", lambda n: whole.measure(n, load)),
                    ("3 stages, one process", lambda n: chain.measure(n, load)),
                    ("3 workers over HTTP", lambda n: cluster.measure(n, load)),
                ],
                SEQUENCES,
                options.rounds,
            )
            memory = cluster.memory()
        with running_cluster(data_dir=data_dir, **cluster_options) as cluster:
            warm_start_s = cluster.startup_s
    result = {
        "commit": commit(),
        "model": options.model.stem,
        "machine": before,
        "prefilled_tokens": LONG_PROMPT,
        "decoded_tokens": NUM_TOKENS,
        "rounds": options.rounds,
        "rates": as_json(summaries),
        "memory": {name: {"rss_mb": used.rss_mb, "private_mb": used.private_mb} for name, used in memory.items()},
        "start_up_s": {"stages_to_fetch": round(cold_start_s, 2), "stages_on_disk": round(warm_start_s, 2)},
    }
    path = ROOT / "bench" / "results" / time.strftime("throughput-%Y%m%d-%H%M%S.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(summaries))
    print("memory (RSS / private MB):", {name: (used.rss_mb, used.private_mb) for name, used in memory.items()})
    print("start-up:", result["start_up_s"], " stored:", path.relative_to(ROOT))


if __name__ == "__main__":
    main()
