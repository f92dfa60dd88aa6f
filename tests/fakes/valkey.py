"""A real Valkey with the settings of production, for tests: own port, own folder, ended by its pid."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from shared.registry.server import find_redis_server, server_command

START_LIMIT_S = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ValkeyServer:
    def __init__(self, data_dir: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._data_dir = data_dir
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = server_command(find_redis_server(), self.port, self._data_dir)
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"Valkey did not start on port {self.port}")
            time.sleep(0.01)

    def kill(self) -> None:
        """As a crash would: no chance to write anything more."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def lose_data(self) -> None:
        """Forget everything while it does not run."""
        assert self._process is None
        shutil.rmtree(self._data_dir)

    def empty(self) -> None:
        with Redis(port=self.port) as client:
            client.flushall()

    def _answers(self) -> bool:
        try:
            with Redis(port=self.port, socket_connect_timeout=0.2, socket_timeout=0.5) as client:
                return bool(client.ping())
        except RedisError:
            return False

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(10)
            self._process = None


@contextmanager
def running_valkey() -> Iterator[ValkeyServer]:
    """For fixtures of any scope."""
    with tempfile.TemporaryDirectory(prefix="butterfly-valkey-") as folder:
        server = ValkeyServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
