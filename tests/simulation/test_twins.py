"""Two processes with one key are one faulty node at most (design page on verification, test T7).

`BUTTERFLY_TRIALS` raises the number of scenarios, for a long run: 6000 take about two minutes.
"""

import os
from collections import Counter

import pytest

from services.coordinator.domain import ledger
from tests.simulation.test_planted_bugs import Plant, lanes_in_place_of_nodes, never, replaced
from tests.simulation.trial import Violation
from tests.simulation.twins import TwinTrial, draw_twins

BLOCK = 250
NUM_TRIALS = int(os.environ.get("BUTTERFLY_TRIALS", "500"))
BUGS: dict[str, Plant] = {
    "double signing not noticed": replaced(ledger, "is_other", never),
    "lanes counted in place of nodes": replaced(ledger, "num_signers", lanes_in_place_of_nodes),
}


def run_trials() -> None:
    for seed in range(2 * BLOCK):
        TwinTrial(draw_twins(seed), Counter()).run()


@pytest.mark.parametrize("first_seed", range(0, NUM_TRIALS, BLOCK))
def test_twins_commit_nothing_wrong_and_only_their_own_key_is_convicted(first_seed: int) -> None:
    counts: Counter[str] = Counter()
    for seed in range(first_seed, min(first_seed + BLOCK, NUM_TRIALS)):
        TwinTrial(draw_twins(seed), counts).run()
    print(dict(counts))
    assert counts["double signed"] > 0
    assert counts["honest twins"] > 0


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_by_twins(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises(Violation):
        run_trials()
