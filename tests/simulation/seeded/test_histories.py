"""The control plane and its workers in virtual time, through the faults that a seed draws.

`BUTTERFLY_SEEDS` raises the number of seeds; `make simulation SEEDS=20000` plays them on all cores.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count, takewhile
from pathlib import Path

import pytest

from tests.simulation.seeded.light import in_place
from tests.simulation.seeded.planted import BUGS
from tests.simulation.seeded.play import Player, failing_seeds, report
from tests.simulation.seeded.story import draw_story
from tests.simulation.seeded.trial import play

NUM_SEEDS = int(os.environ.get("BUTTERFLY_SEEDS", "100"))
BLOCK = 20
SEEDS_TO_FIND_A_BUG = 400
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    player = Player()
    yield player
    player.close()


@pytest.mark.parametrize("first_seed", range(0, NUM_SEEDS, BLOCK))
def test_every_task_ends_right_and_nothing_is_left_behind(player: Player, first_seed: int) -> None:
    for seed in range(first_seed, min(first_seed + BLOCK, NUM_SEEDS)):
        outcome = player.play_one(seed)
        assert not outcome.violations, report(outcome)


def test_seeds_that_once_failed_go_well(player: Player) -> None:
    for seed in failing_seeds():
        outcome = player.play_one(seed)
        assert not outcome.violations, report(outcome)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(player: Player, name: str) -> None:
    bug = BUGS[name]
    with in_place(bug.patches):
        seeds = takewhile(lambda seed: seed < bug.first_seed + SEEDS_TO_FIND_A_BUG, count(bug.first_seed))
        assert any(play(seed, player.home, make_registry=bug.make_registry).violations for seed in seeds)


@pytest.mark.parametrize("seed", [1, 4, 5])
def test_the_framework_around_the_services_changes_nothing(player: Player, seed: int) -> None:
    assert play(seed, player.home, whole_apps=True).digest == player.play_one(seed).digest


def test_a_seed_gives_the_same_trace_in_every_process_whatever_was_played_before() -> None:
    script = (
        "import sys\n"
        "from tests.simulation.seeded.play import Player\n"
        "player = Player()\n"
        "print(sorted((seed, player.play_one(int(seed)).digest) for seed in sys.argv[1:]))\n"
        "player.close()\n"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", script, *seeds],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed, seeds in (("1", "123"), ("2", "321"))
    ]
    assert told[0] == told[1]
    assert len(told[0]) > 90


def test_seeds_differ() -> None:
    assert len({draw_story(seed).blows for seed in range(20)}) > 10
