"""`python -m bench.placement`: how good plans are, and how long they take.

Against brute force on small instances, against the optimum where the search could have done without it, against what
others do on larger clusters, and against the clock. One seed: the same instances every time. Fails when a plan is more
than 1 % off the optimum, or worse than another's. Stores the figures under bench/results/.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from bench.measure import commit, machine
from bench.placement_baselines import BASELINES
from bench.placement_instances import ROOMY, best_of_all, random_cluster, random_model
from services.partitioner.domain.hops import Hops, NoHops
from services.partitioner.domain.placement import rooms_of, sums_of
from services.partitioner.domain.planning import make_plan
from services.partitioner.domain.strategies.choosing import best_cut, searched_cut
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from services.partitioner.domain.strategies.pipeline import Pipelines
from services.partitioner.domain.strategies.topology_aware import TopologyAware
from shared.domain.plan import Objective, PlanInput

CLOSE = 0.01
SIZES = (8, 16, 32, 64)
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Exact:
    """Beside the best of all plans."""

    instances: int
    plans: int
    off: int
    """More than `CLOSE`."""
    worst_excess: float


@dataclass(frozen=True, slots=True)
class Gap:
    """Of the search beside the optimum that an exact plan finds, as a share of it."""

    objective: Objective
    plans: int
    close: int
    most_of_95_percent: float
    worst: float


@dataclass(frozen=True, slots=True)
class Others:
    """By how much slower their plans are than ours: geometric mean of those that fit, and how many that are."""

    nodes: int
    objective: Objective
    slower: Mapping[str, tuple[float, int]]
    worse: int
    """Of our plans."""


@dataclass(frozen=True, slots=True)
class Spent:
    nodes: int
    strategy: str
    objective: Objective
    seconds: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """Of a run, as it is stored."""

    commit: str
    machine: Mapping[str, object]
    exact: Exact
    gaps: tuple[Gap, ...]
    others: tuple[Others, ...]
    spent: tuple[Spent, ...]


def against_brute_force(count: int) -> Exact:
    rng, worst, bad, fit = random.Random(1), 0.0, 0, 0
    for _ in range(count):
        model = random_model(rng, rng.randint(1, 12))
        rooms = rooms_of(sums_of(model), random_cluster(rng, model, rng.randint(1, 6)))
        num_stages = rng.randint(1, len(rooms))
        cases = ((TopologyAware(), Hops(rooms), None), (LoadBalanced(), NoHops(rooms), num_stages))
        for strategy, hops, stages in cases:
            for objective in Objective:
                counts = [stages] if stages else range(1, 7)
                best = best_of_all(rooms, model.num_layers, hops, objective, counts)
                seats = strategy.seat(rooms, model.num_layers, stages, objective)
                if (seats is None) != (best is None):
                    bad += 1
                if seats is None or best is None:
                    continue
                fit += 1
                places = {room.node.node_id: index for index, room in enumerate(rooms)}
                order = tuple(places[seat.node_id] for seat in seats)
                cut = Pipelines(rooms, model.num_layers, hops).rated(order, tuple(seat.layers.end for seat in seats))
                excess = cut.value(objective)[0] / best - 1
                worst, bad = max(worst, excess), bad + (excess > CLOSE)
    print(f"brute force: {count:,} instances, {fit:,} plans, {bad} more than {CLOSE:.0%} off, worst {worst:.2%}")
    return Exact(count, fit, bad, worst)


def gaps_of_search(count: int) -> tuple[Gap, ...]:
    rng, found_gaps = random.Random(2), list[Gap]()
    for objective in Objective:
        gaps = []
        for _ in range(count):
            model = random_model(rng, rng.randint(6, 24))
            rooms = rooms_of(sums_of(model), random_cluster(rng, model, rng.randint(5, 8), memory=(1.05, 6)))
            pipelines = Pipelines(rooms, model.num_layers, Hops(rooms))
            best, found = best_cut(pipelines, None, objective), searched_cut(pipelines, None, objective)
            if best is not None:
                gap = math.inf if found is None else found.value(objective)[0] / best.value(objective)[0] - 1
                gaps.append(gap)
        gaps.sort()
        close = sum(gap < CLOSE for gap in gaps)
        told = Gap(objective, len(gaps), close, gaps[int(len(gaps) * 0.95)], gaps[-1])
        found_gaps.append(told)
        print(
            f"search, {objective}: {close} of {told.plans} within {CLOSE:.0%} of the optimum,"
            f" 95 % within {told.most_of_95_percent:.2%}, worst {told.worst:.2%}"
        )
    return tuple(found_gaps)


def against_others(count: int) -> tuple[Others, ...]:
    rows: list[Others] = []
    print("others by ours, geometric mean (plans that fit): nodes, objective | " + " | ".join(BASELINES))
    for size in SIZES:
        for objective in Objective:
            rng, worse = random.Random(f"{size}:{objective}"), 0
            gains: defaultdict[str, list[float]] = defaultdict(list)
            for _ in range(count):
                model = random_model(rng, rng.choice([16, 32, 60, 80]))
                rooms = rooms_of(sums_of(model), random_cluster(rng, model, size, memory=ROOMY))
                pipelines = Pipelines(rooms, model.num_layers, Hops(rooms))
                ours = best_cut(pipelines, None, objective)
                for name, place in BASELINES.items():
                    theirs = place(pipelines, objective)
                    if theirs is None:
                        continue
                    gain = theirs.value(objective)[0] / ours.value(objective)[0] if ours else 0.0
                    worse += gain < 1 - 1e-9
                    gains[name].append(gain)
            slower = {name: (statistics.geometric_mean(gains[name]), len(gains[name])) for name in gains}
            rows.append(Others(size, objective, slower, worse))
            cells = ["{:.2f} ({})".format(*slower[name]) if name in slower else "- (0)" for name in BASELINES]
            print(f"{size}, {objective} | " + " | ".join(cells), flush=True)
    print(f"{sum(row.worse for row in rows)} plans of ours are worse")
    return tuple(rows)


def against_the_clock() -> tuple[Spent, ...]:
    found: list[Spent] = []
    for num_nodes in (1_000, 10_000):
        rng = random.Random(3)
        model = random_model(rng, 200)
        nodes = random_cluster(rng, model, num_nodes, memory=(0.3 * num_nodes, 0.3 * num_nodes))
        for strategy in (LoadBalanced(), TopologyAware()):
            for objective in Objective:
                began, began_cpu = time.perf_counter(), time.process_time()
                make_plan(PlanInput(model, nodes, strategy.name, objective=objective), strategy)
                seconds, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
                found.append(Spent(num_nodes, strategy.name, objective, seconds, cpu_s))
                told = f"{seconds:.3f} s, CPU {cpu_s:.3f} s"
                print(f"{num_nodes:,} nodes x 200 layers, {strategy.name}, {objective}: {told}")
    return tuple(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=2_000)
    parser.add_argument("--clusters", type=int, default=20, help="of each size")
    arguments = parser.parse_args()
    result = Result(
        commit(),
        machine(),
        against_brute_force(arguments.instances),
        gaps_of_search(arguments.clusters * 10),
        against_others(arguments.clusters),
        against_the_clock(),
    )
    path = RESULTS / time.strftime("placement-%Y%m%d-%H%M%S.json")
    path.write_bytes(TypeAdapter(Result).dump_json(result) + b"\n")
    print("stored:", path.relative_to(RESULTS.parent.parent))
    sys.exit(1 if result.exact.off or any(row.worse for row in result.others) else 0)


if __name__ == "__main__":
    main()
