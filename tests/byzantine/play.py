"""`python -m tests.byzantine.play [KIND …]`: honest workers and one liar run real tasks; prints what became of it.

Each kind of lie gets a cluster of its own: three honest workers, three stages, and a fourth worker that lies at one
seat, at every seat in turn; a liar that was found out comes back with a new key. Several tasks run at once, and their
tokens are compared with those of the whole model in one process. Exit code 1 if a wrong token was committed, a task
failed, an honest worker was evicted, a liar that can be proven guilty was not, or no lie was told.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.byzantine.attacks import ATTACKS
from tests.byzantine.cells import Outcome, play
from tests.byzantine.clusters import HONEST_WORKERS, honest_cluster, oracle, states
from tests.byzantine.hostile import play_hostile
from tests.byzantine.roles import CELLS
from tests.byzantine.twins import play_twins

SCENARIOS: Mapping[str, str] = {
    "twins": "two processes with one key work at once",
    "hostile-bodies": "strangers and an insider send what no honest worker sends",
}
"""Kinds that are bound to no seat."""


def play_kind(model: Path, attack: str, folder: Path, right: Sequence[list[int]]) -> Iterator[Outcome]:
    """All seats in turn. A new cluster when an honest worker is out of it for a while: its neighbours at odds with
    several liars are kept away, as they should be, and the next seat needs them all."""
    left, number = list(ATTACKS[attack].cells), 0
    while left:
        number += 1
        with honest_cluster(model, folder / f"{attack}-{number}") as cluster:
            while left:
                yield play(cluster, attack, left.pop(0), right=right, number=len(left))
                if list(states(cluster).values()).count("ready") != HONEST_WORKERS:
                    break


def play_scenario(name: str, model: Path, folder: Path, right: Sequence[list[int]]) -> tuple[str, tuple[str, ...]]:
    """What became of it, and what should not have been."""
    with honest_cluster(model, folder / name) as cluster:
        if name == "twins":
            twins = play_twins(cluster, right=right, number=0)
            return f"never more than {twins.most_at_once} node of the key, which is {twins.state}", twins.faults
        hostile = play_hostile(cluster, right=right)
        most = max(hostile.growth_bytes.values()) >> 20
        return f"{len(hostile.refusals)} bodies refused, no process grew by more than {most} MiB", hostile.faults


def table(outcomes: Sequence[Outcome]) -> str:
    """Kinds by seats: what became of the liar, and after how many windows that it lied about."""
    width = max(len(outcome.attack) for outcome in outcomes)
    found = {(outcome.attack, outcome.cell): outcome for outcome in outcomes}
    lines = [" ".join([" " * width, *(f"{f'{cell.role} {cell.stage}':>13}" for cell in CELLS)])]
    for attack in dict.fromkeys(outcome.attack for outcome in outcomes):
        shown = [_shown(found.get((attack, cell))) for cell in CELLS]
        lines.append(" ".join([attack.ljust(width), *(f"{each:>13}" for each in shown)]))
    return "\n".join(lines)


def _shown(outcome: Outcome | None) -> str:
    if outcome is None:
        return "-"
    if outcome.faults:
        return "FAILED"
    return f"evicted, {outcome.windows}w" if outcome.liar_state == "evicted" else outcome.liar_state


def told_of(outcome: Outcome) -> str:
    because = f": {outcome.reason}" if outcome.reason else ""
    return (
        f"  {outcome.cell!s:19} {outcome.lies:3} lies about {outcome.windows} windows, liar {outcome.liar_state}"
        f"{because} ({outcome.took_s:.0f} s): {', '.join(outcome.faults) or 'as it should be'}"
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.byzantine.play", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*ATTACKS, *SCENARIOS], help="default: all", metavar="KIND")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.kinds if name not in ATTACKS and name not in SCENARIOS]
    if unknown:
        parser.error(f"unknown kind {unknown[0]}; there are {', '.join([*ATTACKS, *SCENARIOS])}")
    began_s = time.monotonic()
    model, right = asked.model.resolve(), oracle(asked.model)
    outcomes: list[Outcome] = []
    num_bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in asked.kinds:
            print(f"\n{name}: {ATTACKS[name].says if name in ATTACKS else SCENARIOS[name]}", flush=True)
            if name in SCENARIOS:
                told, faults = play_scenario(name, model, Path(scratch), right)
                print(f"  {told}: {', '.join(faults) or 'as it should be'}", flush=True)
                num_bad += bool(faults)
                continue
            for outcome in play_kind(model, name, Path(scratch), right):
                outcomes.append(outcome)
                num_bad += bool(outcome.faults)
                print(told_of(outcome), flush=True)
    if outcomes:
        print(f"\n{table(outcomes)}")
    print(f"\n{_totals(outcomes)}; {num_bad} violations in {time.monotonic() - began_s:.0f} s")
    return 1 if num_bad else 0


def _totals(outcomes: Sequence[Outcome]) -> str:
    evicted = sum(outcome.liar_state == "evicted" for outcome in outcomes)
    provable = sum(ATTACKS[outcome.attack].is_convicted for outcome in outcomes)
    return (
        f"{sum(outcome.lies for outcome in outcomes)} lies, {sum(outcome.wrong for outcome in outcomes)} wrong answers,"
        f" {evicted} of {provable} provable liars evicted,"
        f" {sum(outcome.honest_evicted for outcome in outcomes)} honest workers evicted"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
