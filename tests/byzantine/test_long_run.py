"""The long run, short: some windows under two kinds of lie; `make byzantine-long` plays all kinds for long."""

import pytest

from tests.synthetic.long_run import run_kind


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["wrong-hidden", "broken-chain"])
def test_liars_that_come_back_change_no_token_and_are_found_out_each_time(kind: str) -> None:
    outcome = run_kind(kind, windows=100, seed=1)
    assert outcome.faults == []
    assert outcome.tally.failed == {}
    assert outcome.evicted > 0
