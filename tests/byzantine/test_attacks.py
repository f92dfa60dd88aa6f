"""A few kinds of lie in real clusters; `make byzantine` plays them all."""

from pathlib import Path

import pytest

from tests.byzantine.play import faults_of, honest_answers, play


@pytest.fixture(scope="module")
def expected(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return honest_answers(demo_model, tmp_path_factory.mktemp("honest") / "cluster")


@pytest.mark.parametrize("attack", ["wrong-hidden", "lazy", "false-output", "no-signature"])
def test_a_liar_changes_no_token_and_is_found(
    attack: str, expected: tuple[str, ...], demo_model: Path, tmp_path: Path
) -> None:
    outcome = play(demo_model, attack, tmp_path / "cluster")
    assert faults_of(outcome, expected) == []
