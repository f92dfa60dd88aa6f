"""What commands share that run in the foreground until they are asked to stop."""

import contextlib
import signal
import sys
from typing import TextIO

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def show(line: str, stream: TextIO | None = None) -> None:
    """For the operator, on standard error; a terminal that is gone must not take the processes with it."""
    with contextlib.suppress(OSError):
        print(line, file=stream or sys.stderr, flush=True)
