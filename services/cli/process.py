"""One child process: started, its output drained to its end, asked to go or killed."""

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from services.cli.domain.output import terminal_line
from services.cli.stores.rotating_log import RotatingLog

LAUNCHER = Path(__file__).with_name("launcher.py")
_KEPT_LINES = 12
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
        self.last_lines: deque[str] = deque(maxlen=_KEPT_LINES)

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

    async def run_to_its_end(self, show: Callable[[str], None], *, logs_json: bool) -> int:
        """Write its output to its log, `show` what an operator should see, return its return code."""
        async with asyncio.TaskGroup() as group:
            drain = group.create_task(self._drain(show, logs_json=logs_json))
            code = await self._process.wait()
            await asyncio.wait({drain}, timeout=_LAST_WORDS_S)
            drain.cancel()
        self._log.close()
        return code

    async def _drain(self, show: Callable[[str], None], *, logs_json: bool) -> None:
        if self._process.stdout is None:
            raise AssertionError("started with a pipe")
        async for line in _lines(self._process.stdout):
            self._log.write(line)
            text = line.decode(errors="replace")
            self.last_lines.append(text.rstrip())
            shown = terminal_line(self.name, text, logs_json=logs_json)
            if shown is not None:
                show(shown)

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
