"""The chaos play, short; `make chaos` plays for long."""

import asyncio
from pathlib import Path

import pytest

from tests.chaos.play import report, run, synthetic_play

SEED = 20


@pytest.mark.timeout(300)
def test_killed_hung_and_cut_off_processes_lose_double_and_falsify_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    play, oracle = synthetic_play(folder, tasks=60, duration_s=35.0, every_s=1.75, seed=SEED)
    outcome = asyncio.run(run(play, folder, oracle))
    print(f"seed {SEED}\n{report(outcome)}")
    assert outcome.is_good
    assert outcome.done
