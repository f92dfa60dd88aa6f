"""Keeps the threads of an engine call on cores of their own.

libgomp wakes the helpers of a call anew each time, and the kernel often puts two threads of one call on the same core
while another is idle. They wait for each other at every barrier, so a short call takes twice as long.
"""

import os
import threading
from pathlib import Path

from services.worker.domain.threads import core_shares

TASKS = Path("/proc/self/task")


class ThreadTeam:
    """The thread that calls the engine, and the helpers libgomp starts for it. Used on that thread only.

    A helper inherits the name of the thread that started it, which is how it is found. Does nothing where the system
    keeps no list of threads (it is not Linux).
    """

    def __init__(self, name: str) -> None:
        """`name`: at most 15 characters, of no other thread in this process."""
        self._name = name
        self._cores = sorted(os.sched_getaffinity(0)) if TASKS.is_dir() else []
        self._helpers: list[int] = []
        self._is_named = False
        self._spread_over = 1
        """Threads between which the cores are divided; with 1 the caller may run anywhere."""

    def before_call(self, n_threads: int, *, is_long: bool) -> None:
        """Divide the cores between the threads of the call.

        During a long call the caller may run anywhere: then the kernel has the time to balance, and knows of the other
        processes that compute. So it may when helpers are missing, since they start where their caller may run.
        """
        if not self._cores:
            return
        if not self._is_named:
            (TASKS / str(threading.get_native_id()) / "comm").write_text(self._name)
            self._is_named = True
        wanted = 1 if is_long or n_threads > len(self._helpers) + 1 else n_threads
        if wanted != self._spread_over:
            self._spread(wanted)

    def after_call(self, n_threads: int) -> None:
        """Look for helpers that the call has started."""
        if self._cores and n_threads > len(self._helpers) + 1:
            self._helpers = self._find_helpers()

    def _spread(self, n_threads: int) -> None:
        mine, *shares = core_shares(self._cores, n_threads)
        try:
            for helper, share in zip(self._helpers, shares, strict=False):
                os.sched_setaffinity(helper, share)
        except ProcessLookupError:  # libgomp lets go of helpers that the last call did not need
            self._helpers, mine, n_threads = [], frozenset(self._cores), 1
        os.sched_setaffinity(0, mine)
        self._spread_over = n_threads

    def _find_helpers(self) -> list[int]:
        me = threading.get_native_id()
        return [tid for tid in sorted(int(task.name) for task in TASKS.iterdir()) if tid != me and self._is_ours(tid)]

    def _is_ours(self, tid: int) -> bool:
        try:
            return (TASKS / str(tid) / "comm").read_text().rstrip("\n") == self._name
        except FileNotFoundError:  # it ended meanwhile
            return False
