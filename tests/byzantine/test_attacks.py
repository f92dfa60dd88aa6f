"""A few liars in a real cluster, one after the other; `make byzantine` plays every kind at every seat."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.byzantine.cells import play
from tests.byzantine.clusters import honest_cluster, oracle
from tests.byzantine.hostile import play_hostile
from tests.byzantine.roles import Cell
from tests.byzantine.twins import play_twins
from tests.e2e.running import Cluster

_numbers = count()
"""Each worker that joins has its own port."""


@pytest.fixture(scope="module")
def right(demo_model: Path) -> tuple[list[int], ...]:
    return oracle(demo_model)


@pytest.fixture(scope="module")
def honest(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with honest_cluster(demo_model, tmp_path_factory.mktemp("honest") / "cluster") as cluster:
        yield cluster


@pytest.mark.parametrize(
    ("attack", "cell"),
    [
        ("wrong-hidden", Cell(0, "executor")),
        ("double-signing", Cell(1, "executor")),
        ("other-token", Cell(2, "executor")),
        ("lazy", Cell(0, "auditor")),
        ("skipped-rows", Cell(1, "auditor")),
        ("false-output", Cell(2, "auditor")),
    ],
    ids=str,
)
def test_a_liar_changes_no_token_and_is_found(
    attack: str, cell: Cell, honest: Cluster, right: tuple[list[int], ...]
) -> None:
    assert play(honest, attack, cell, right=right, number=next(_numbers)).faults == ()


def test_hostile_bodies_are_refused_and_hurt_nobody(honest: Cluster, right: tuple[list[int], ...]) -> None:
    assert play_hostile(honest, right=right, repeats=1).faults == ()


def test_two_processes_with_one_key_are_one_node(honest: Cluster, right: tuple[list[int], ...]) -> None:
    assert play_twins(honest, right=right, number=next(_numbers) + 1).faults == ()
