"""What the attack kit itself calls a failure."""

from dataclasses import replace

from tests.byzantine.cells import Outcome
from tests.byzantine.play import table
from tests.byzantine.roles import CELLS, RANKS, Cell

CAUGHT = Outcome(
    attack="lazy",
    cell=Cell(1, "auditor"),
    lies=3,
    windows=2,
    wrong=0,
    failures=(),
    rounds=1,
    liar="node-1",
    liar_state="evicted",
    reason="rule 6",
    honest_evicted=0,
    took_s=1.0,
)


def test_a_caught_liar_is_as_it_should_be() -> None:
    assert CAUGHT.faults == ()


def test_every_violation_is_a_failure() -> None:
    assert replace(CAUGHT, lies=0).faults == ("NO LIE WAS TOLD",)
    assert replace(CAUGHT, wrong=1).faults == ("1 WRONG ANSWERS",)
    assert replace(CAUGHT, honest_evicted=1).faults == ("1 HONEST EVICTED",)
    assert replace(CAUGHT, liar_state="ready").faults == ("NOT CONVICTED",)
    assert replace(CAUGHT, failures=("late",)).faults == ("1 FAILED TASKS (late)",)


def test_who_is_only_slow_must_not_be_convicted() -> None:
    assert replace(CAUGHT, attack="silent").faults == ("CONVICTED WITHOUT PROOF",)
    assert replace(CAUGHT, attack="silent", liar_state="ready").faults == ()


def test_the_table_has_every_seat_and_names_failures() -> None:
    head, lazy, silent = table([CAUGHT, replace(CAUGHT, attack="silent")]).splitlines()
    assert [f"{cell.role} {cell.stage}" in head for cell in CELLS] == [True] * len(RANKS)
    assert "evicted, 2w" in lazy
    assert "FAILED" in silent
