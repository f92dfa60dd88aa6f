"""A child process that must not outlive its supervisor."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

from shared.runtime.config import PARENT_PID_VARIABLE, ConfigError

PR_SET_PDEATHSIG = 1


def watched_parent(environ: Mapping[str, str]) -> int | None:
    """The process to die with, named by BUTTERFLY_PARENT_PID; None: nobody asked for that."""
    text = environ.get(PARENT_PID_VARIABLE)
    if not text:
        return None
    if not text.isdigit():
        raise ConfigError(f"environment variable {PARENT_PID_VARIABLE} should be a process id")
    return int(text)


def die_with_parent() -> None:
    """Let the kernel send SIGTERM when the parent ends (Linux; elsewhere `is_orphan` is asked regularly)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def is_orphan(parent_pid: int | None) -> bool:
    """Whether the watched parent is gone: also true when it died before `die_with_parent` was called."""
    return parent_pid is not None and os.getppid() != parent_pid
