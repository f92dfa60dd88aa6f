import stat
from pathlib import Path

from services.worker.stores.node_identity import load_node_id


def test_a_node_keeps_its_id_over_restarts(tmp_path: Path) -> None:
    assert load_node_id(tmp_path / "data") == load_node_id(tmp_path / "data")


def test_two_nodes_have_two_ids(tmp_path: Path) -> None:
    assert load_node_id(tmp_path / "a") != load_node_id(tmp_path / "b")


def test_the_id_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    load_node_id(tmp_path)
    assert stat.S_IMODE((tmp_path / "node_id").stat().st_mode) == 0o600


def test_a_damaged_id_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "node_id").write_text("../../etc/passwd")
    assert load_node_id(tmp_path).startswith("node-")
