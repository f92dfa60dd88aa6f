"""The data folder of a local cluster: who runs in it, its secrets, its status, its logs."""

import fcntl
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.domain.errors import InvalidInput

DEFAULT_DATA_DIR = Path(".butterfly")


class Secrets(BaseModel):
    """Made once per data folder, so that workers of other machines may join again after a restart."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    service_token: str
    join_token: str


class ProcessStatus(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pid: int | None
    port: int
    state: str
    """starting, ready, restarting, failed or stopped."""
    restarts: int


class ClusterStatus(BaseModel):
    """What `butterfly up` says of itself and its children."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    host: str
    """Where its processes are reached."""
    api_url: str
    partitioner_url: str
    coordinator_url: str
    model: str
    processes: tuple[ProcessStatus, ...]


class DataDir:
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.models = self.path / "models"
        self.logs = self.path / "logs"
        self.redis = self.path / "redis"
        self._secrets = self.path / "secrets.json"
        self._status = self.path / "status.json"
        self._lock = self.path / "up.lock"
        self._alive = self.path / "up.alive"

    def worker(self, index: int) -> Path:
        return self.path / "workers" / str(index)

    def prepare(self) -> None:
        """Raises `InvalidInput` when the folder cannot be made or written."""
        try:
            for folder in (self.path, self.models, self.logs, self.redis):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"the data folder {self.path} cannot be used: {error.strerror}") from None

    def lock(self) -> "FolderLock":
        """The right to run a cluster here. Raises `InvalidInput` when another process has it."""
        return FolderLock(self._lock, self._alive)

    def in_use(self) -> bool:
        """Whether a `butterfly up` runs in this folder."""
        if not self._alive.exists():
            return False
        fd = os.open(self._alive, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def secrets(self) -> Secrets:
        """This folder's secrets, made when it has none."""
        known = self.known_secrets()
        if known is None:
            known = Secrets(service_token=secrets.token_urlsafe(32), join_token=secrets.token_urlsafe(32))
            write_atomically(self._secrets, known.model_dump_json(indent=2), mode=0o600)
        return known

    def known_secrets(self) -> Secrets | None:
        if not self._secrets.exists():
            return None
        try:
            return Secrets.model_validate_json(self._secrets.read_bytes())
        except (OSError, ValidationError):
            raise InvalidInput(f"{self._secrets} is not readable; remove it to have new secrets made") from None

    def write_status(self, status: ClusterStatus) -> None:
        write_atomically(self._status, status.model_dump_json(indent=2))

    def running(self) -> ClusterStatus | None:
        """The status of the cluster that runs here, or None."""
        if not self.in_use():
            return None
        try:
            return ClusterStatus.model_validate_json(self._status.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            raise InvalidInput(f"{self._status} is not readable") from None

    def clear_status(self) -> None:
        """What an earlier run left behind is not this run's status."""
        self._status.unlink(missing_ok=True)


class FolderLock:
    """Held until `release` or the end of the process, however it ends.

    Two files: for the first only runs compete, so that a refusal is never wrong; the second is also tried, for an
    instant, by those who ask whether somebody runs.
    """

    def __init__(self, lock: Path, alive: Path) -> None:
        self._fds = [os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)]
        try:
            fcntl.flock(self._fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise InvalidInput(
                f"another `butterfly up` runs in {lock.parent}: stop it, or take another --data-dir"
            ) from None
        self._fds.append(os.open(alive, os.O_RDWR | os.O_CREAT, 0o600))
        fcntl.flock(self._fds[1], fcntl.LOCK_EX)

    def release(self) -> None:
        for fd in reversed(self._fds):
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Readers see the old content or the new, never a part; a secret is never readable to others, not even at first."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
