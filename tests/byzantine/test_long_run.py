"""The long run, short: some windows under two kinds of lie; `make byzantine-long` plays all kinds for long."""

from pathlib import Path

import pytest

from tests.synthetic.long_run import run_kind


@pytest.mark.timeout(300)  # ten processes start first, which a busy machine takes long for
@pytest.mark.parametrize("kind", ["wrong-hidden", "broken-chain"])
def test_liars_that_come_back_change_no_token_and_are_found_out_each_time(kind: str, tmp_path: Path) -> None:
    outcome = run_kind(kind, tmp_path / "cluster", windows=100, seed=1)
    assert outcome.faults == []
    assert outcome.tally.failed == {}
    assert outcome.evicted > 0
