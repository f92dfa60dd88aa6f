from pathlib import Path

import pytest

from services.cli.stores.data_dir import ClusterStatus, DataDir, ProcessStatus, write_atomically
from services.cli.stores.rotating_log import RotatingLog
from shared.domain.errors import InvalidInput

STATUS = ClusterStatus(
    pid=1,
    host="127.0.0.1",
    api_url="http://127.0.0.1:8080",
    partitioner_url="http://127.0.0.1:8082",
    coordinator_url="http://127.0.0.1:8083",
    model="m",
    processes=(ProcessStatus(name="api", pid=2, port=8080, state="ready", restarts=0),),
)


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    folder = DataDir(tmp_path / "data")
    folder.prepare()
    return folder


def test_two_runs_cannot_share_a_folder(data: DataDir) -> None:
    with data.lock(), pytest.raises(InvalidInput, match="another `butterfly up` runs"):
        data.lock()
    data.lock().release()


def test_a_folder_is_in_use_as_long_as_the_lock_is_held(data: DataDir) -> None:
    assert not data.in_use()
    with data.lock():
        assert data.in_use()
    assert not data.in_use()


def test_the_status_a_dead_run_left_behind_is_nobodys(data: DataDir) -> None:
    with data.lock():
        data.write_status(STATUS)
        assert data.running() == STATUS
    assert data.running() is None


def test_a_run_that_has_not_said_anything_yet_has_no_status(data: DataDir) -> None:
    with data.lock():
        data.write_status(STATUS)
        data.clear_status()
        assert data.running() is None


def test_secrets_are_made_once_and_belong_to_their_owner(data: DataDir) -> None:
    made = data.secrets()
    assert DataDir(data.path).secrets() == made
    assert len({made.service_token, made.join_token}) == 2
    assert min(len(made.service_token), len(made.join_token)) >= 40
    assert (data.path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_broken_secrets_are_not_silently_replaced(data: DataDir) -> None:
    (data.path / "secrets.json").write_text("{}")
    with pytest.raises(InvalidInput, match="remove it to have new secrets made"):
        data.secrets()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be used"):
        DataDir(tmp_path / "file" / "data").prepare()


def test_a_file_is_replaced_as_a_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, "one")
    write_atomically(path, "two")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "two"


def test_a_log_keeps_one_older_file_of_bounded_size(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "api.log", max_bytes=20)
    for number in range(10):
        log.write(b"line %d....\n" % number)
    log.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["api.log", "api.log.1"]
    assert all(file.stat().st_size <= 20 for file in tmp_path.iterdir())
    assert (tmp_path / "api.log").read_text().endswith("line 9....\n")
