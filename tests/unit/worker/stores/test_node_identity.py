from pathlib import Path

from services.worker.stores.node_identity import load_identity
from shared.domain.signing import node_id_of


def test_a_node_is_its_key_and_keeps_it_over_restarts(tmp_path: Path) -> None:
    first, again = load_identity(tmp_path / "data"), load_identity(tmp_path / "data")
    assert first.node_id == again.node_id == node_id_of(again.key.public_key)


def test_two_folders_are_two_nodes(tmp_path: Path) -> None:
    assert load_identity(tmp_path / "a").node_id != load_identity(tmp_path / "b").node_id
