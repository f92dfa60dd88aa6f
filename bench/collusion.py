"""`python -m bench.collusion`: wrong answers that get out when more than f nodes collude (verification.md section 1).

Seats are drawn over three stages for the majority and over four for unanimity: so the table's figures come out.

No engine and no network: nodes are numbers. Every task draws its seats at random; colluders are informed, that is they
lie, alike, wherever enough of them sit at one stage, and nowhere else. A tail auditor that is one of them lies along.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

NUM_NODES = 20
NUM_TASKS = 20_000
COLLUDERS = (2, 4, 6)
NUM_HISTORIES = 50
"""Runs of so many tasks each, in which what is found changes what comes: single ones differ a lot."""


@dataclass(frozen=True, slots=True)
class Rules:
    num_lanes: int
    num_equal: int
    """Signers of the same result that it takes at every stage."""
    num_stages: int
    tail_fraction: float = 0.0
    hold: bool = False
    """The tail audit comes before the answer gets out."""
    honest_auditors: bool = False
    is_evicted: bool = True
    """A trusted referee convicts who lied. Else all who signed are away for a while, the auditor too."""


FIRST_AWAY_TASKS, LONGEST_AWAY_TASKS = 60, 3_600
"""A quarantine, doubled each time, at one task per second (`services.coordinator.domain.standing`)."""

MAJORITY = Rules(num_lanes=3, num_equal=2, num_stages=3)
UNANIMITY = Rules(num_lanes=2, num_equal=2, num_stages=4)
WIDER = Rules(num_lanes=3, num_equal=3, num_stages=4)
COLUMNS: dict[str, Rules] = {
    "2-of-3 majority": MAJORITY,
    "unanimity, f = 1": UNANIMITY,
    "f = 2": WIDER,
    "f = 1, tail 10 %": replace(UNANIMITY, tail_fraction=0.1),
    "tail 100 %": replace(UNANIMITY, tail_fraction=1.0),
    "tail 100 %, hold": replace(UNANIMITY, tail_fraction=1.0, hold=True),
    "… honest auditors": replace(UNANIMITY, tail_fraction=1.0, hold=True, honest_auditors=True),
    "tail 10 %, no referee": replace(UNANIMITY, tail_fraction=0.1, is_evicted=False),
}


@dataclass(slots=True)
class Tally:
    wrong: int = 0
    """Answers that got out wrong."""
    revoked: int = 0
    """Of those, found later."""
    honest_evicted: int = 0


def history(rules: Rules, num_colluders: int, rng: random.Random, *, num_tasks: int = NUM_TASKS) -> Tally:
    """One cluster's tasks, one after the other."""
    colluders = frozenset(range(num_colluders))
    nodes = list(range(NUM_NODES))
    away_until: dict[int, tuple[int, int]] = {}
    tally = Tally()
    for now in range(num_tasks):
        if len(colluders.intersection(nodes)) < rules.num_equal:
            break  # nobody is left to lie
        present = [node for node in nodes if away_until.get(node, (0, 0))[0] <= now]
        if len(present) <= rules.num_lanes:
            continue
        stages = [rng.sample(present, rules.num_lanes) for _ in range(rules.num_stages)]
        lied_at = [seats for seats in stages if len(colluders.intersection(seats)) >= rules.num_equal]
        is_audited = rules.tail_fraction > 0 and rng.random() < rules.tail_fraction
        found = _find(rules, present, lied_at, colluders, rng) if is_audited else None
        tally.wrong += bool(lied_at) and not (found is not None and rules.hold)
        if found is None:
            continue
        tally.revoked += not rules.hold
        seats, auditor = found
        if rules.is_evicted:
            tally.honest_evicted += len(set(seats) - colluders)
            nodes = [node for node in nodes if node not in seats]
        else:
            for node in (*seats, auditor):
                times = away_until.get(node, (0, -1))[1] + 1
                away_until[node] = now + min(FIRST_AWAY_TASKS * 2**times, LONGEST_AWAY_TASKS), times
    return tally


def _find(
    rules: Rules,
    present: Sequence[int],
    lied_at: Sequence[Sequence[int]],
    colluders: frozenset[int],
    rng: random.Random,
) -> tuple[Sequence[int], int] | None:
    """The first stage whose fresh auditor does not lie along, and the auditor."""
    for seats in lied_at:
        fresh = [node for node in present if node not in seats]
        auditor = rng.choice([node for node in fresh if not (rules.honest_auditors and node in colluders)])
        if auditor not in colluders:
            return seats, auditor
        # A colluder goes on with the lie; the next stage has an auditor of its own.
    return None


def share_wrong(rules: Rules, num_colluders: int, *, seed: int) -> float:
    """Of the answers, in percent."""
    num_histories = NUM_HISTORIES if rules.tail_fraction and rules.is_evicted else 1
    runs = [history(rules, num_colluders, random.Random(f"{seed}:{number}")).wrong for number in range(num_histories)]
    return 100 * statistics.mean(runs) / NUM_TASKS


def main() -> None:
    print(f"{NUM_TASKS:,} tasks on {NUM_NODES} nodes: wrong answers released, in percent")
    print("colluders | " + " | ".join(COLUMNS))
    for num_colluders in COLLUDERS:
        row = [f"{share_wrong(rules, num_colluders, seed=1):.3g}" for rules in COLUMNS.values()]
        print(f"{num_colluders} | " + " | ".join(row))


if __name__ == "__main__":
    main()
