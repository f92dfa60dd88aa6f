"""`python -m tests.chaos.play`: a load of tasks while processes are killed, stopped and cut off; then the proof that
nothing was lost, doubled or falsified. Exit code 1 if a promise was broken."""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from bench.measure import commit, machine
from services.cli.domain.cluster import Kind, seats
from services.cli.stores.data_dir import DataDir
from shared.domain.task import SamplerParams
from tests.chaos.checker import Findings, Oracle, check
from tests.chaos.clients import Clients, Load, draw_requests
from tests.chaos.cluster import ChaosCluster, Shape, chaos_cluster
from tests.chaos.history import Asked, History
from tests.chaos.nemesis import Nemesis
from tests.chaos.registry_dump import dump
from tests.chaos.schedule import Strike, draw_schedule
from tests.e2e.tokens import expected_tokens
from tests.fakes.engine import SyntheticModel
from tests.fakes.tiny_models import write_tiny_model
from tests.integration.engine.stages import Chain

WORKERS = 5
STAGES = 3
MEMORY_MB = "1024"
REPLICAS = {Kind.SCHEDULER: 2, Kind.COORDINATOR: 2}
SYNTHETIC_LAYERS = 6
SYNTHETIC_END = (2,)
HEAL_LIMIT_S = 120.0
S_PER_SYNTHETIC_TASK = 0.6
S_PER_REAL_TASK = 1.5
"""Two cores keep up with that between the strikes."""
SETTINGS = {
    "BUTTERFLY_WORKER__MEMORY_MB": MEMORY_MB,
    "BUTTERFLY_COORDINATION__SPEEDS": "declared",
    "BUTTERFLY_COORDINATION__CHECKPOINT_INTERVAL": "4",
    "BUTTERFLY_COORDINATION__WINDOW_CHECKPOINTS": "2",
    "BUTTERFLY_LOGGING__LEVEL": "INFO",
}
"""Short windows, so that many are open when something strikes."""


@dataclass(frozen=True, slots=True)
class Play:
    """All that a run depends on, time apart."""

    shape: Shape
    load: Load
    requests: Sequence[Asked]
    schedule: Sequence[Strike]
    duration_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    findings: Findings
    done: Sequence[tuple[float, Strike]]
    restarts: int
    num_requests: int
    seconds: float
    all_came_back: bool
    """Every process was ready again after the last strike."""

    @property
    def is_good(self) -> bool:
        return not self.findings.violations and self.all_came_back


def synthetic_play(folder: Path, *, tasks: int, duration_s: float, every_s: float, seed: int) -> tuple[Play, Oracle]:
    """On workers that compute a cheap function; the model's file only gives vocabulary and layers."""
    data = DataDir(folder)
    data.prepare()
    write_tiny_model(data.models / "synthetic.gguf", num_layers=SYNTHETIC_LAYERS)
    whole = SyntheticModel(SYNTHETIC_LAYERS)
    load = Load("synthetic", range(3, 64), prompt=(1, 6), answer=(8, 48), ignore_eos=False)
    shape = Shape(
        model="synthetic",
        workers=WORKERS,
        stages=STAGES,
        settings=SETTINGS | {"BUTTERFLY_WORKER__CONTEXT_TOKENS": "256"},
        worker_command=("-m", "tests.synthetic.worker"),
        replicas=REPLICAS,
    )

    def oracle(asked: Asked) -> Sequence[int]:
        return whole.generate(asked.prompt_ids, asked.max_tokens, sampler=_sampler(asked), end_ids=SYNTHETIC_END)

    return _play(shape, load, tasks=tasks, duration_s=duration_s, every_s=every_s, seed=seed), oracle


def real_play(
    folder: Path, model: Path, *, tasks: int, duration_s: float, every_s: float, seed: int
) -> tuple[Play, Oracle]:
    """On workers that compute a real model."""
    data = DataDir(folder)
    data.prepare()
    (data.models / model.name).symlink_to(model.absolute())
    load = Load(model.stem, range(300, 5_000), prompt=(4, 60), answer=(8, 48), ignore_eos=True)
    whole = Chain.open([model])

    def oracle(asked: Asked) -> Sequence[int]:
        return expected_tokens(whole, asked.prompt_ids, _sampler(asked), num_tokens=asked.max_tokens)

    shape = Shape(model=model.stem, workers=WORKERS, stages=STAGES, settings=SETTINGS, replicas=REPLICAS)
    return _play(shape, load, tasks=tasks, duration_s=duration_s, every_s=every_s, seed=seed), oracle


def _play(shape: Shape, load: Load, *, tasks: int, duration_s: float, every_s: float, seed: int) -> Play:
    names = sorted(seat.name for seat in seats(0, shape.workers, with_redis=True, replicas=shape.replicas))
    return Play(
        shape=shape,
        load=load,
        requests=draw_requests(Random(f"{seed} requests"), load, tasks),
        schedule=draw_schedule(Random(f"{seed} strikes"), names, duration_s=duration_s, every_s=every_s),
        duration_s=duration_s,
        seed=seed,
    )


def _sampler(asked: Asked) -> SamplerParams:
    return SamplerParams(temperature=asked.temperature, seed=asked.seed)


async def run(play: Play, folder: Path, oracle: Oracle) -> Outcome:
    began_s = time.monotonic()
    async with chaos_cluster(play.shape, DataDir(folder)) as cluster:
        clients = Clients(cluster.api_url, play.load, Random(f"{play.seed} pauses"))
        nemesis = Nemesis(cluster)
        async with aclosing(clients):
            async with asyncio.TaskGroup() as group:
                striking = group.create_task(nemesis.strike_all(play.schedule))
                stories = await clients.play_all(play.requests, over_s=play.duration_s)
                await striking
            all_came_back = await _come_back(cluster)
            tasks = await dump(cluster.redis_url, clients)
        restarts = sum(status.restarts for status in cluster.states.values())
    return Outcome(
        findings=check(History(tuple(stories), tasks), oracle),
        done=nemesis.done,
        restarts=restarts,
        num_requests=len(stories),
        seconds=time.monotonic() - began_s,
        all_came_back=all_came_back,
    )


async def _come_back(cluster: ChaosCluster) -> bool:
    try:
        async with asyncio.timeout(HEAL_LIMIT_S):
            await cluster.until_all_ready()
    except TimeoutError:
        return False
    return True


def report(outcome: Outcome) -> str:
    findings, struck = outcome.findings, struck_by_kind(outcome.done)
    lines = [
        f"  struck: {len(outcome.done)} times; processes started again: {outcome.restarts}",
        *(f"    {kind}: {_counts(faults)}" for kind, faults in sorted(struck.items())),
        f"  requests: {outcome.num_requests}, never accepted: {findings.refusals.total()}",
        *(f"    {count} x {reason}" for reason, count in findings.refusals.most_common()),
        f"  tokens committed: {findings.num_tokens}",
        f"  accepted tasks: {_counts(findings.states)}",
        *(f"    {count} x failed with {reason}" for reason, count in findings.failures.most_common()),
        f"  all processes came back: {'yes' if outcome.all_came_back else 'NO'}",
        f"  promises broken: {len(findings.violations)}",
        *(f"    {violation.promise}: {violation.detail}" for violation in findings.violations),
        f"  took {outcome.seconds:.0f} s",
    ]
    return "\n".join(lines)


def struck_by_kind(done: Sequence[tuple[float, Strike]]) -> dict[str, Counter[str]]:
    """How often each kind of process met each fault."""
    struck: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for _, strike in done:
        struck[strike.process.partition("-")[0]][strike.fault.value] += 1
    return dict(struck)


def as_json(play: Play, outcome: Outcome) -> dict[str, object]:
    """The report to keep; of what was played on which machine the caller tells."""
    findings = outcome.findings
    return {
        "model": play.shape.model,
        "seed": play.seed,
        "requests": outcome.num_requests,
        "seconds": round(outcome.seconds),
        "struck": {kind: dict(faults) for kind, faults in sorted(struck_by_kind(outcome.done).items())},
        "restarts": outcome.restarts,
        "all_came_back": outcome.all_came_back,
        "accepted_tasks": dict(findings.states),
        "failed_with": dict(findings.failures),
        "never_accepted": dict(findings.refusals),
        "tokens_committed": findings.num_tokens,
        "promises_broken": [asdict(violation) for violation in findings.violations],
    }


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.play", description=__doc__)
    parser.add_argument("--tasks", type=int, default=200, help="requests (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of requests and strikes (%(default)s)")
    parser.add_argument("--duration", type=float, metavar="S", help="of the load (default: by the number of requests)")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="between two strikes (%(default)s)")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a GGUF file; default: the synthetic engine")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where the report is kept, as JSON")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where logs and data stay")
    asked = parser.parse_args(arguments)
    duration_s = asked.duration or asked.tasks * (S_PER_SYNTHETIC_TASK if asked.model is None else S_PER_REAL_TASK)
    what = {"commit": commit(), "machine": machine()}
    print(f"seed {asked.seed}: {asked.tasks} requests over {duration_s:g} s", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.keep or Path(scratch) / "cluster"
        numbers = {"tasks": asked.tasks, "duration_s": duration_s, "every_s": asked.every, "seed": asked.seed}
        if asked.model is None:
            play, oracle = synthetic_play(folder, **numbers)
        else:
            play, oracle = real_play(folder, asked.model, **numbers)
        outcome = asyncio.run(run(play, folder, oracle))
    for at_s, strike in sorted(outcome.done, key=lambda done: done[0]):
        print(f"  {at_s:6.1f} s  {strike.fault:<8} {strike.process:<12} {strike.lasts_s:.1f} s")
    print(report(outcome))
    if asked.report is not None:
        asked.report.write_text(json.dumps(what | as_json(play, outcome), indent=1) + "\n", encoding="utf-8")
    return 0 if outcome.is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
