import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.worker.service.thread_team import TASKS, ThreadTeam

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are placed on Linux only")

ALL_CORES = os.sched_getaffinity(0) if sys.platform == "linux" else set[int]()


class Helper:
    """A thread that inherits the name of the one that starts it, as those of libgomp do."""

    def __init__(self, name: str) -> None:
        self._ready, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        self.tid = threading.get_native_id()
        self._ready.set()
        self._stop.wait()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        # `join` returns when the thread has nothing left to run; the kernel lets go of it a little later.
        deadline = time.monotonic() + 10
        while (TASKS / str(self.tid)).exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.fixture
def caller() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def start_call(team: ThreadTeam, name: str) -> Helper:
    """The first call of two threads: its helper starts while it runs."""
    team.before_call(2, is_long=False)
    helper = Helper(name)
    team.after_call(2)
    return helper


@pytest.mark.skipif(len(ALL_CORES) < 2, reason="two threads cannot be kept apart on one core")
def test_the_threads_of_a_short_call_get_cores_of_their_own(caller: ThreadPoolExecutor) -> None:
    team = ThreadTeam(name := "test-team-1")
    helper = caller.submit(start_call, team, name).result()
    try:
        assert caller.submit(os.sched_getaffinity, 0).result() == ALL_CORES
        caller.submit(team.before_call, 2, is_long=False).result()
        mine, others = caller.submit(os.sched_getaffinity, 0).result(), os.sched_getaffinity(helper.tid)
        assert mine
        assert not mine & others
        caller.submit(team.before_call, 2, is_long=True).result()
        assert caller.submit(os.sched_getaffinity, 0).result() == ALL_CORES
    finally:
        helper.end()


def test_a_helper_that_has_ended_is_looked_for_again(caller: ThreadPoolExecutor) -> None:
    team = ThreadTeam(name := "test-team-2")
    caller.submit(start_call, team, name).result().end()
    caller.submit(team.before_call, 2, is_long=False).result()
    assert caller.submit(os.sched_getaffinity, 0).result() == ALL_CORES
    helper = caller.submit(start_call, team, name).result()
    try:
        caller.submit(team.before_call, 2, is_long=False).result()
        assert len(os.sched_getaffinity(helper.tid)) < len(ALL_CORES) or len(ALL_CORES) == 1
    finally:
        helper.end()
