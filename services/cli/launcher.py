"""Runs a command that ends with its parent: `python launcher.py PARENT_PID COMMAND...`.

Started by path, without the package: it imports the standard library only and is gone at the exec. The kernel's wish is
kept over the exec, so it also covers programs that know nothing of it, such as the Redis server.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before we asked
        sys.exit(1)
    os.execv(command[0], command)  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main()
