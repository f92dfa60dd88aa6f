import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.runtime.config import ConfigError
from shared.runtime.key_file import load_key


def test_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    assert load_key(tmp_path / "new" / "key").public_key == load_key(tmp_path / "new" / "key").public_key


def test_a_key_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    load_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_all_that_start_at_once_get_the_same_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: load_key(tmp_path / "key").public_key, range(8)))
    assert len(set(keys)) == 1


def test_what_is_left_of_an_earlier_try_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".key.1.part").write_bytes(b"half")
    load_key(tmp_path / "key")


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_file_that_is_no_key_is_neither_used_nor_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError, match="no signing key"):
        load_key(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == content


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/key cannot be used"):
        load_key(tmp_path / "file" / "key")
