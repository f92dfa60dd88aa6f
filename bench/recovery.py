"""How long a client waits when a stage is lost in the middle of its answer: `make bench-recovery`.

A cluster of four workers and three stages answers one audited task at a time. When some tokens are committed, a worker
that holds a stage of lane 0 is killed (SIGKILL) or stopped (SIGSTOP). Measured is the time from the signal to the first
tokens that are committed in the next epoch, as a client of the task's event stream sees them; and whether all tokens
are those of the whole model in one process. Prints a table and stores everything under bench/results/.
"""

import argparse
import json
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from bench.cluster import running_cluster
from bench.measure import commit, machine
from bench.workers import Workers, wait_prepared, workers_of
from shared.contracts.receipts import BundleBody
from shared.domain.receipt import kept_receipt
from shared.domain.task import SamplerParams
from tests.e2e.tokens import expected_tokens
from tests.integration.engine.stages import Chain

ROOT = Path(__file__).parent.parent
WORKERS = 4
STAGES = 3
PREFIXES = (64, 128, 256, 512, 1024)
KINDS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}
TOKENS_BEFORE = 24
"""Committed when the worker is lost; the prompt has the rest of the prefix."""
TOKENS_AFTER = 40
MEMORY_MB = 1_024
READY_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Trial:
    kind: str
    prefix: int
    stage: int
    seconds: float
    """From the signal to the first commit of a later epoch."""
    detected_s: float
    """From the signal to the first sign of a new epoch in the task's stream: the loss is noticed, a plan is made."""
    seated_s: float
    """From the signal until all seats of the new epoch were ready: stages are loaded. What is left is the replay of the
    prefix by every lane, and the first window."""
    epochs: int
    is_right: bool
    """All tokens came, and they are the whole model's."""


def prompt_of(prefix: int) -> list[int]:
    return [(7 * index + prefix) % 4096 + 300 for index in range(prefix - TOKENS_BEFORE)]


def ports_of(api: httpx.Client) -> dict[str, int]:
    """Of the nodes that are ready, by id."""
    nodes = api.get("/v1/nodes").json()["data"]
    return {
        node["node_id"]: int(node["address"].rpartition(":")[2].rstrip("/"))
        for node in nodes
        if node["state"] == "ready"
    }


def wait_ready(api: httpx.Client, model: str) -> None:
    """All workers are there, and a task through them warms them up: stages are loaded, links open."""
    end_s = time.monotonic() + READY_LIMIT_S
    while len(ports_of(api)) < WORKERS:
        if time.monotonic() > end_s:
            raise RuntimeError("the workers did not come back")
        time.sleep(0.1)
    task_id = _submit(api, model, prompt_of(PREFIXES[0]), 8)
    while api.get(f"/v1/tasks/{task_id}", params={"wait": 10}).json()["status"] not in {"completed", "failed"}:
        pass


@dataclass
class _Watch:
    """What a client saw of one task."""

    ids: list[int] = field(default_factory=list)
    epoch: int = 0
    epoch_lost: int | None = None
    """That in which the worker was lost; None: not yet."""
    detected_s: float | None = None
    seated_s: float | None = None
    seen_s: float | None = None

    @property
    def is_due(self) -> bool:
        return self.epoch_lost is None and len(self.ids) >= TOKENS_BEFORE

    def note(self, name: str, data: dict[str, Any]) -> None:  # JSON as a client gets it
        if name == "state":
            self.epoch = max(self.epoch, data["epoch"])
        is_later = self.epoch_lost is not None and self.epoch > self.epoch_lost
        if is_later and self.detected_s is None:
            self.detected_s = time.monotonic()
        if is_later and name == "state" and data["to"] == "computing":
            self.seated_s = time.monotonic()
        if name == "commit":
            self.ids += data["token_ids"]
            if is_later and self.seen_s is None:
                self.seen_s = time.monotonic()


def play(
    api: httpx.Client, model: str, workers: Workers, kind: str, prefix: int, stage: int, right: list[int]
) -> Trial:
    task_id = _submit(api, model, prompt_of(prefix), TOKENS_BEFORE + TOKENS_AFTER)
    watch, lost_s, port, status = _Watch(), 0.0, 0, ""
    with api.stream("GET", f"/v1/tasks/{task_id}/events") as answer:
        for name, data in _events(answer):
            watch.note(name, data)
            if watch.is_due:
                port, watch.epoch_lost = _executor_port(api, task_id, stage), watch.epoch
                workers.signal(port, KINDS[kind])
                lost_s = time.monotonic()
            if name == "end":
                status = data["status"]
                break
    if port:
        workers.renew(port)
    if watch.seen_s is None or watch.detected_s is None or watch.seated_s is None:
        raise RuntimeError(f"task {task_id} is {status}, without a recovery")
    is_right = status == "completed" and watch.ids == right
    detected_s, seated_s, seen_s = (at_s - lost_s for at_s in (watch.detected_s, watch.seated_s, watch.seen_s))
    return Trial(kind, prefix, stage, seen_s, detected_s, seated_s, watch.epoch, is_right)


def table(trials: Sequence[Trial]) -> str:
    lines = [
        "| lost by | prefix | times | epoch p50 | seats p50 | next token p50 | p99 | max | tokens as without |",
        "| --- |" + " --- |" * 8,
    ]
    for kind in KINDS:
        for prefix in dict.fromkeys(trial.prefix for trial in trials):
            found = [trial for trial in trials if (trial.kind, trial.prefix) == (kind, prefix)]
            if found:
                lines.append(_line(f"{kind} | {prefix}", found))
        upto = [trial for trial in trials if trial.kind == kind and trial.prefix <= 512]
        if upto:
            lines.append(_line(f"{kind} | up to 512", upto))
    return "\n".join(lines)


def _line(name: str, trials: Sequence[Trial]) -> str:
    waited = sorted(trial.seconds for trial in trials)
    p99 = waited[min(len(waited) - 1, int(0.99 * len(waited)))]
    detected = statistics.median(trial.detected_s for trial in trials)
    seated = statistics.median(trial.seated_s for trial in trials)
    right = sum(trial.is_right for trial in trials)
    return (
        f"| {name} | {len(trials)} | {detected:.2f} s | {seated:.2f} s | {statistics.median(waited):.2f} s"
        f" | {p99:.2f} s | {waited[-1]:.2f} s | {right} of {len(trials)} |"
    )


def _submit(api: httpx.Client, model: str, prompt: Sequence[int], max_tokens: int) -> str:
    options = {"prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    accepted = api.post(
        "/v1/tasks", json={"kind": "completion", "model": model, "verification": "audit", "input": options}
    )
    accepted.raise_for_status()
    return str(accepted.json()["task_id"])


def _events(answer: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in answer.iter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


def _executor_port(api: httpx.Client, task_id: str, stage: int) -> int:
    """Who computes this stage of lane 0, as its receipts say."""
    body = BundleBody.model_validate_json(api.get(f"/v1/tasks/{task_id}/receipt").content)
    for entry in reversed(body.entries):
        for signed in entry.receipts:
            receipt = kept_receipt(signed.signed()).receipt
            if (receipt.lane, receipt.stage) == (0, stage):
                return ports_of(api)[receipt.node_id]
    raise RuntimeError(f"no receipt of stage {stage}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / ".butterfly/models/smollm2-135m.gguf", help="a GGUF file")
    parser.add_argument("--times", type=int, default=20, help="per prefix and kind (%(default)s)")
    parser.add_argument("--prefixes", type=int, nargs="*", default=PREFIXES)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--base-port", type=int, default=28080)
    options = parser.parse_args()
    before, rng, trials = machine(), Random(1), []
    whole = Chain.open([options.model], n_slots=1, ctx=max(options.prefixes) + TOKENS_AFTER)
    greedy = SamplerParams(temperature=0.0)
    rights = {
        prefix: expected_tokens(whole, prompt_of(prefix), greedy, num_tokens=TOKENS_BEFORE + TOKENS_AFTER)
        for prefix in options.prefixes
    }
    whole.close()
    with tempfile.TemporaryDirectory() as folder:
        up = running_cluster(
            workers=0, stages=STAGES, base_port=options.base_port, data_dir=Path(folder), model=options.model
        )
        with (
            up as cluster,
            workers_of(cluster, WORKERS, memory_mb=MEMORY_MB) as workers,
            httpx.Client(base_url=cluster.api_url, timeout=120, trust_env=False) as api,
        ):
            wait_ready(api, cluster.model)
            wait_prepared(cluster, workers=WORKERS, stages=STAGES)
            for kind, prefix in [(k, p) for _ in range(options.times) for p in options.prefixes for k in options.kinds]:
                wait_ready(api, cluster.model)
                trial = play(api, cluster.model, workers, kind, prefix, rng.randrange(STAGES), rights[prefix])
                trials.append(trial)
                print(trial, flush=True)
    result = {
        "commit": commit(),
        "model": options.model.stem,
        "machine": before,
        "trials": [asdict(trial) for trial in trials],
    }
    path = ROOT / "bench" / "results" / time.strftime("recovery-%Y%m%d-%H%M%S.json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(trials))
    print("stored:", path.relative_to(ROOT))


if __name__ == "__main__":
    main()
