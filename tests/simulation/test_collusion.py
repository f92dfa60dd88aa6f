"""What more than f colluders achieve, against the table of verification.md section 1 (T8): 20,000 tasks, in percent."""

import random

import pytest

from bench.collusion import COLLUDERS, COLUMNS, NUM_HISTORIES, history, share_wrong

TABLE = {
    "2-of-3 majority": (4.5, 22.8, 48.0),
    "unanimity, f = 1": (2.0, 12.4, 29.0),
    "f = 2": (0.0, 1.4, 6.6),
}
SEED = 1


@pytest.mark.parametrize("column", TABLE)
def test_without_a_tail_audit_the_figures_are_those_of_the_table(column: str) -> None:
    found = [share_wrong(COLUMNS[column], colluders, seed=SEED) for colluders in COLLUDERS]
    assert found == pytest.approx(TABLE[column], rel=0.2)


@pytest.mark.parametrize("colluders", COLLUDERS)
def test_a_tail_audit_of_every_tenth_answer_leaves_two_wrong_ones_in_a_thousand(colluders: int) -> None:
    assert share_wrong(COLUMNS["f = 1, tail 10 %"], colluders, seed=SEED) <= 0.2


@pytest.mark.parametrize("colluders", COLLUDERS)
def test_with_hold_and_honest_auditors_nothing_wrong_gets_out(colluders: int) -> None:
    assert share_wrong(COLUMNS["… honest auditors"], colluders, seed=SEED) == 0


@pytest.mark.parametrize("colluders", COLLUDERS)
def test_with_a_trusted_referee_no_honest_node_is_convicted(colluders: int) -> None:
    for name, rules in COLUMNS.items():
        runs = NUM_HISTORIES if rules.tail_fraction and rules.is_evicted else 0
        for number in range(runs):
            assert history(rules, colluders, random.Random(number)).honest_evicted == 0, name
