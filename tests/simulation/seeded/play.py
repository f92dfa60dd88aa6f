"""`python -m tests.simulation.seeded.play`: many seeds on all cores, or one seed with all that can be seen of it.

A seed with a violation is printed with the end of its trace and written to `failing_seeds.txt`, which the tests replay.
Exit code 1 if there was any.
"""

import argparse
import gc
import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

from bench.measure import commit, machine
from tests.simulation.seeded.cluster import prepare_home
from tests.simulation.seeded.story import Blow
from tests.simulation.seeded.trial import Outcome, play

FAILING_SEEDS = Path(__file__).with_name("failing_seeds.txt")
SEEDS_PER_CALL = 25
TELL_EVERY_S = 30.0
TAIL_LINES = 60


def failing_seeds() -> tuple[int, ...]:
    """Seeds that failed once. A line is a seed, and after `#` what was wrong."""
    lines = FAILING_SEEDS.read_text(encoding="utf-8").splitlines()
    seeds = (line.partition("#")[0].strip() for line in lines)
    return tuple(int(seed) for seed in seeds if seed)


@dataclass
class Sum:
    seeds: int = 0
    events: int = 0
    epochs: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcomes: Iterable[Outcome], *, cpu_s: float) -> None:
        self.cpu_s += cpu_s
        for outcome in outcomes:
            self.seeds += 1
            self.events += outcome.num_events
            self.epochs += outcome.epochs
            self.virtual_s += outcome.virtual_s
            self.faults += outcome.faults
            self.ends += outcome.ends
            if outcome.violations:
                self.failed.append(outcome)


class Player:
    """Plays seeds in one process."""

    def __init__(self) -> None:
        self._disabled_before = logging.root.manager.disable
        logging.disable()  # of what is broken on purpose every service tells
        self._folder = tempfile.TemporaryDirectory(prefix="butterfly-seeded-")
        self.home = Path(self._folder.name)
        prepare_home(self.home)
        gc.collect()
        gc.freeze()
        gc.disable()  # within a history: what is collected may have last words, and they would come at any moment

    def play(self, seeds: Sequence[int]) -> tuple[tuple[Outcome, ...], float]:
        """With the seconds of the processor that it took. Traces of what went well are left out."""
        began_s = time.process_time()
        outcomes = (self.play_one(seed) for seed in seeds)
        kept = tuple(each if each.violations else replace(each, tail=()) for each in outcomes)
        return kept, time.process_time() - began_s

    def play_one(self, seed: int) -> Outcome:
        outcome = play(seed, self.home)
        gc.collect()
        return outcome

    def close(self) -> None:
        self._folder.cleanup()
        gc.enable()
        gc.unfreeze()
        logging.disable(self._disabled_before)


_players: list[Player] = []
"""Of a process of the pool: its own."""


def _played(seeds: Sequence[int]) -> tuple[tuple[Outcome, ...], float]:
    if not _players:
        _players.append(Player())
    return _players[0].play(seeds)


def outcomes_of(seeds: Sequence[int], *, processes: int) -> Iterator[tuple[tuple[Outcome, ...], float]]:
    """In order, some at a time."""
    calls = [seeds[start : start + SEEDS_PER_CALL] for start in range(0, len(seeds), SEEDS_PER_CALL)]
    with ProcessPoolExecutor(min(processes, len(calls)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_played, calls)


def report(outcome: Outcome) -> str:
    story = outcome.story
    lines = [
        f"seed {story.seed}: {story.num_workers} workers, {story.num_coordinators} coordinators,"
        f" {story.num_schedulers} schedulers, {story.num_stages} stages; trace {outcome.digest}",
        *(f"  blow: {_told(blow)}" for blow in story.blows),
        *(
            f"  task: {errand.at_s:.3f} s {errand.task.task_id} {errand.task.verification}, {errand.task.max_tokens}"
            " tokens"
            for errand in story.errands
        ),
        *(f"  {line}" for line in outcome.tail[-TAIL_LINES:]),
        *(f"  VIOLATED: {what}" for what in outcome.violations),
    ]
    return "\n".join(lines)


def _told(blow: Blow) -> str:
    others = f" from {' '.join(blow.others)}" if blow.others else ""
    return f"{blow.at_s:.3f} s, for {blow.for_s:.3f} s: {blow.kind} {' '.join(blow.hosts)}{others}"


def _keep(outcomes: Sequence[Outcome]) -> None:
    known = set(failing_seeds())
    with FAILING_SEEDS.open("a", encoding="utf-8") as file:
        for outcome in outcomes:
            if outcome.story.seed not in known:
                file.write(f"{outcome.story.seed}  # {outcome.violations[0]}\n")


def play_many(first: int, count: int, *, processes: int) -> Sum:
    total, began_s = Sum(), time.monotonic()
    told_s = began_s
    for outcomes, cpu_s in outcomes_of(range(first, first + count), processes=processes):
        total.add(outcomes, cpu_s=cpu_s)
        failed = [outcome for outcome in outcomes if outcome.violations]
        _keep(failed)
        for outcome in failed:
            print(report(outcome), flush=True)
        now_s = time.monotonic()
        if now_s - told_s >= TELL_EVERY_S:
            told_s = now_s
            print(
                f"{total.seeds} of {count} seeds after {now_s - began_s:.0f} s, {len(total.failed)} failed", flush=True
            )
    wall_s = time.monotonic() - began_s
    print(
        f"{total.seeds} seeds from {first}: {total.seeds / total.cpu_s:.1f} per second and core,"
        f" {total.seeds / wall_s:.1f} per second on {processes} processes\n"
        f"{total.events} events, {total.epochs} epochs, {total.virtual_s / 3600:.1f} hours of virtual time"
    )
    for title, counts in (("faults", total.faults), ("ends of tasks", total.ends)):
        print(f"{title}: {', '.join(f'{count} {kind}' for kind, count in counts.most_common())}")
    print(f"{len(total.failed)} seeds failed: {[outcome.story.seed for outcome in total.failed]}")
    return total


def as_json(first: int, total: Sum) -> dict[str, object]:
    """The report to keep; of what was played on which machine the caller tells."""
    return {
        "first": first,
        "seeds": total.seeds,
        "seeds_per_s_and_core": round(total.seeds / total.cpu_s, 2),
        "events": total.events,
        "epochs": total.epochs,
        "virtual_s": round(total.virtual_s),
        "faults": dict(total.faults.most_common()),
        "ends_of_tasks": dict(total.ends.most_common()),
        "failed": {outcome.story.seed: outcome.violations for outcome in total.failed},
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.seeded.play", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2_000, help="how many (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (%(default)s)")
    parser.add_argument("--seed", type=int, help="play this one alone, and show it")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where the sum of many is kept, as JSON")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="(%(default)s)")
    asked = parser.parse_args(arguments)
    if asked.seed is None:
        what = {"commit": commit(), "machine": machine()}
        total = play_many(asked.first, asked.seeds, processes=asked.processes)
        if asked.report is not None:
            asked.report.write_text(json.dumps(what | as_json(asked.first, total), indent=1) + "\n", encoding="utf-8")
        return 1 if total.failed else 0
    player = Player()
    outcome = player.play_one(asked.seed)
    player.close()
    print(report(outcome))
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
