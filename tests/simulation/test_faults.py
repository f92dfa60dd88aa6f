"""Receipts, checks and blame under every kind of fault (design page on verification, section 15 and test T2).

`BUTTERFLY_TRIALS` raises the number of random trials, for a long run: 100000 take about a quarter of an hour.
"""

import os
from collections import Counter
from itertools import product

import pytest

from shared.domain.window_check import RELAY, SINK, SOURCE
from tests.simulation.attacks import Attack, Kind
from tests.simulation.trial import Case, Trial, draw_case

BLOCK = 250
NUM_TRIALS = int(os.environ.get("BUTTERFLY_TRIALS", "2000"))
KINDS_OF_ONE_STAGE = {Kind.OTHER_IDS: 0, Kind.RING_LIE: 2, Kind.EXTRA_RECORD: 2}
UNSEEN = {Kind.HONEST, Kind.POISONED_PREFIX, Kind.OVERRUNS}
"""Kinds that need more than a place: a crash, or an answer that ends inside a window."""


@pytest.mark.parametrize("first_seed", range(0, NUM_TRIALS, BLOCK))
def test_nothing_wrong_is_committed_and_nobody_honest_is_blamed(first_seed: int) -> None:
    for seed in range(first_seed, min(first_seed + BLOCK, NUM_TRIALS)):
        Trial(draw_case(seed)).run()


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind not in UNSEEN], ids=lambda kind: kind.name.lower())
def test_a_fault_at_every_stage_window_and_lane_meets_its_fate(kind: Kind) -> None:
    for stage, window, lane, persistent in product(range(3), range(3), range(2), (False, True)):
        if KINDS_OF_ONE_STAGE.get(kind, stage) != stage or not happens(kind, lane):
            continue
        attack = Attack(kind, lane, stage, window, persistent)
        Trial(long_case(attack, num_stages=3)).run()
        assert attack.fired, (kind, stage, window, lane)


@pytest.mark.parametrize(("kind", "stages"), [(Kind.EQUIVOCATES, (0, 1)), (Kind.INPUT_LIE, (1, 2))])
def test_who_lies_about_a_link_whenever_it_can_is_convicted_by_what_the_coordinator_saw_pass(
    kind: Kind, stages: tuple[int, ...]
) -> None:
    rules: Counter[int] = Counter()
    for stage, window, lane in product(stages, range(3), range(2)):
        attack = Attack(kind, lane, stage, window, persistent=True)
        trial = Trial(long_case(attack, num_stages=3))
        trial.run()
        assert attack.node is not None
        rules[trial.evicted[attack.node].rule] += 1
    assert set(rules) <= {SOURCE, SINK, RELAY}  # it sits at an end of other lanes as well, and lies there too
    assert rules[RELAY] > 0


@pytest.mark.parametrize("kind", [Kind.EQUIVOCATES, Kind.INPUT_LIE, Kind.HIDES, Kind.WITHHOLDS])
def test_who_does_not_repeat_a_lie_about_a_link_is_parted_from_its_neighbour_and_nobody_is_convicted(
    kind: Kind,
) -> None:
    persistent = kind in {Kind.HIDES, Kind.WITHHOLDS}
    for window, lane in product(range(3), range(2)):
        attack = Attack(kind, lane, 1, window, persistent=persistent)
        trial = Trial(long_case(attack, num_stages=3))
        trial.run()
        assert attack.node in trial.marked or attack.node in trial.evicted
        assert persistent or not trial.evicted


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_a_session_of_honest_nodes_ends_in_its_first_epoch(num_stages: int) -> None:
    for quorum in (False, True):
        case = long_case(Attack(Kind.HONEST, 0, 0, 0, persistent=True), num_stages=num_stages)
        case.quorum = quorum
        trial = Trial(case)
        trial.run()
        assert trial.num_epochs == 1
        assert not trial.evicted
        assert not trial.marked


def happens(kind: Kind, lane: int) -> bool:
    """Only lane 0 has a ring; only others post records."""
    return {Kind.RING_LIE: lane == 0, Kind.EXTRA_RECORD: lane > 0}.get(kind, True)


def long_case(attack: Attack, *, num_stages: int) -> Case:
    """Windows of rows 2, 1, 2 and more: the answer is long enough to reach the last of them."""
    for seed in range(1000):
        case = Case(
            seed=seed,
            quorum=False,
            num_stages=num_stages,
            num_prompt=2,
            max_tokens=7,
            checkpoint_interval=1,
            window_checkpoints=2,
            attacks=[attack],
        )
        if len(Trial(case).truth.records) > 5:
            return case
    raise AssertionError("every answer is short")
