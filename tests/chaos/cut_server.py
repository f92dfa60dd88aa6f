"""A server of the registry whose machine can lose its power."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from shared.registry.server import find_redis_server, server_command
from tests.chaos.fsync_trace import read_notes
from tests.fakes.valkey import free_port

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 30.0


class CutServer:
    """With the arguments of production, except `policy` for appendfsync.

    Log rewriting is off: no file takes another one's inode, by which `fsync_trace` tells files apart.
    """

    def __init__(self, folder: Path, policy: str) -> None:
        self._data_dir = folder / "data"
        self._notes = folder / "notes"
        self._policy = policy
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._pid = 0
        self._tracer: subprocess.Popen[bytes] | None = None
        self._on_disk: dict[int, int] = {}

    def start(self) -> None:
        self._on_disk = {file.stat().st_ino: file.stat().st_size for file in self._files()}
        self._notes.write_text("")
        command = server_command(find_redis_server(), self.port, self._data_dir)
        command[command.index("--appendfsync") + 1] = self._policy
        command += ["--auto-aof-rewrite-percentage", "0"]
        tracer = [sys.executable, "-m", "tests.chaos.fsync_trace", str(self._notes), *command]
        self._tracer = subprocess.Popen(tracer, cwd=ROOT, stdout=subprocess.DEVNULL)
        limit_s = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self._tracer.poll() is not None or time.monotonic() > limit_s:
                self._tracer.kill()
                raise RuntimeError(f"the server did not start on port {self.port}")
            time.sleep(0.01)

    def kill(self) -> None:
        """Its machine is dead from here on."""
        os.kill(self._pid, signal.SIGKILL)

    def cut_back(self) -> int:
        """After `kill`: take away what no fsync has covered. Returns how many bytes that was."""
        assert self._tracer is not None
        self._tracer.wait(10)
        self._tracer = None
        durable = read_notes(self._notes)
        gone = 0
        for file in self._files():
            found = file.stat()
            kept = max(durable.get(found.st_ino, 0), self._on_disk.get(found.st_ino, 0))
            if kept < found.st_size:
                gone += found.st_size - kept
                os.truncate(file, kept)
        return gone

    def end(self) -> None:
        """In whatever state it is."""
        if self._tracer is not None:
            self._tracer.kill()  # takes the server along
            self._tracer.wait(10)

    def _files(self) -> Iterator[Path]:
        return (file for file in self._data_dir.rglob("*") if file.is_file() and file.parent != self._data_dir)

    def _answers(self) -> bool:
        try:
            with Redis(port=self.port, socket_connect_timeout=0.2, socket_timeout=0.5) as client:
                client.ping()  # refused while the log is being read
                self._pid = int(client.info("server")["process_id"])
        except RedisError:
            return False
        return True
