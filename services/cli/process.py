"""One child process: started, its output drained to its end, asked to go or killed."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from services.cli.stores.rotating_log import RotatingLog

LAUNCHER = Path(__file__).with_name("launcher.py")
_LAST_WORDS_S = 1.0
"""What it wrote before it ended is read; a grandchild that keeps the pipe open does not hold us up."""
_MAX_LINE_BYTES = 1024 * 1024
"""A longer line is cut in two: memory stays bounded whatever a child writes."""


class Child:
    """Ends with this process, whatever ends this process. Not restarted: one object, one life."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: RotatingLog) -> None:
        self.name = name
        self._process = process
        self._log = log

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], environment: Mapping[str, str], log: RotatingLog
    ) -> "Child":
        """Raises `OSError` when the command cannot be run."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-E", str(LAUNCHER), str(os.getpid()), *command,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C goes to us alone: we decide the order
        )  # fmt: skip
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def run_to_its_end(self, hear: Callable[[str], None]) -> int:
        """Write its output to its log, let the caller `hear` each line, return its return code."""
        async with asyncio.TaskGroup() as group:
            drain = group.create_task(self._drain(hear))
            code = await self._process.wait()
            await asyncio.wait({drain}, timeout=_LAST_WORDS_S)
            drain.cancel()
        self._log.close()
        return code

    async def _drain(self, hear: Callable[[str], None]) -> None:
        if self._process.stdout is None:
            raise AssertionError("started with a pipe")
        async for line in _lines(self._process.stdout):
            self._log.write(line)
            hear(line.decode(errors="replace"))

    def terminate(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines with their ends; the last one may lack it."""
    rest = b""
    while chunk := await stream.read(65_536):
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            yield line + b"\n"
        if len(rest) > _MAX_LINE_BYTES:
            yield rest + b"\n"
            rest = b""
    if rest:
        yield rest + b"\n"
