"""The supervisor over real processes."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.cli.domain.cluster import Kind, Seat, seats
from services.cli.probe import answers_ready
from services.cli.stores.data_dir import ProcessStatus
from services.cli.supervisor import ProcessSpec, StartFailed, State, Supervisor
from shared.runtime.clock import Clock, SystemClock
from shared.runtime.giving_up import EXIT_REFUSED
from tests.fakes.free_ports import free_base_port

FAKE = Path(__file__).parents[2] / "fakes" / "service_process.py"
LIMIT_S = 20.0


class HastyClock(Clock):
    """The real clock; what would be waited for long, such as a backoff, is over at once."""

    def __init__(self) -> None:
        self._real = SystemClock()

    def now_s(self) -> float:
        return self._real.now_s()

    def wall_s(self) -> float:
        return self._real.wall_s()

    async def sleep(self, seconds: float) -> None:
        await self._real.sleep(min(seconds, 0.02))


@dataclass
class Cluster:
    """Fake services under a supervisor that runs in the background of the test."""

    supervisor: Supervisor
    journal: Path
    shown: list[str] = field(default_factory=list)
    processes: dict[str, ProcessStatus] = field(default_factory=dict)

    def events(self) -> list[str]:
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    def pid(self, name: str) -> int:
        pid = self.processes[name].pid
        assert pid is not None
        return pid


MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make_cluster(tmp_path: Path) -> MakeCluster:
    def make(
        *,
        options: dict[str, list[str]] | None = None,
        kinds: tuple[Kind, ...] = (Kind.METRICS, Kind.COORDINATOR, Kind.WORKER, Kind.API),
        num_workers: int = 2,
        clock: Clock | None = None,
        ready_within_s: float = 10.0,
    ) -> Cluster:
        journal = tmp_path / "journal"
        shown: list[str] = []
        processes: dict[str, ProcessStatus] = {}

        def spec(seat: Seat) -> ProcessSpec:
            own = (options or {}).get(seat.name, [])
            command = (sys.executable, str(FAKE), str(seat.port), "--name", seat.name, "--journal", str(journal), *own)

            async def is_ready() -> bool:
                return await answers_ready("127.0.0.1", seat.port)

            return ProcessSpec(seat, command, dict(os.environ), ready_within_s, is_ready)

        def publish(told: tuple[ProcessStatus, ...]) -> None:
            processes.update({process.name: process for process in told})

        wanted = [
            seat for seat in seats(free_base_port(num_workers), num_workers, with_redis=True) if seat.kind in kinds
        ]
        supervisor = Supervisor(
            [spec(seat) for seat in wanted],
            clock=clock or SystemClock(),
            logs=tmp_path,
            show=shown.append,
            publish=publish,
        )
        return Cluster(supervisor, journal, shown, processes)

    return make


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110  what is waited for happens in other processes
            await asyncio.sleep(0.02)


async def for_ever() -> None:
    await asyncio.Event().wait()


async def run_with(cluster: Cluster, body: Callable[[], Awaitable[None]]) -> int:
    """Run the cluster, `body` once it has started; then stop it."""

    async def started() -> None:
        try:
            await body()
        finally:
            cluster.supervisor.ask_to_stop()

    async with asyncio.timeout(LIMIT_S):
        return await cluster.supervisor.run(started)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_processes_start_and_stop_in_their_order(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(num_workers=1)

    async def all_are_ready() -> None:
        assert {process.state for process in cluster.processes.values()} == {State.READY}

    assert await run_with(cluster, all_are_ready) == 0
    order = ["metrics", "coordinator", "worker-0", "api"]
    assert cluster.events() == [
        *(f"{name} start" for name in order),
        *(f"{name} stop" for name in ("api", "coordinator", "worker-0", "metrics")),
    ]
    assert {process.state for process in cluster.processes.values()} == {State.STOPPED}


async def test_a_killed_process_starts_again_under_a_new_pid(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()

    async def kill_a_worker() -> None:
        killed = cluster.pid("worker-1")
        os.kill(killed, signal.SIGKILL)
        await until(lambda: cluster.processes["worker-1"].restarts == 1)
        await until(lambda: cluster.processes["worker-1"].state == State.READY)
        assert cluster.pid("worker-1") != killed

    assert await run_with(cluster, kill_a_worker) == 0
    assert any("worker-1 ended with signal 9; it starts again in 0.5 s" in line for line in cluster.shown)


async def test_a_process_that_ends_too_often_stays_down_and_gives_the_exit_code(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(clock=HastyClock())

    async def kill_a_worker_five_times() -> None:
        for restarts in range(5):
            await until(lambda wanted=restarts: cluster.processes["worker-0"].restarts == wanted)  # type: ignore[misc]
            await until(lambda: cluster.processes["worker-0"].state == State.READY)
            os.kill(cluster.pid("worker-0"), signal.SIGKILL)
            await until(lambda: cluster.processes["worker-0"].state != State.READY)
        await until(lambda: cluster.processes["worker-0"].state == State.FAILED)
        assert cluster.processes["api"].state == State.READY

    assert await run_with(cluster, kill_a_worker_five_times) == 137


async def test_a_process_that_is_refused_stays_down_at_once(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(options={"worker-0": ["--exit-on-usr1", str(EXIT_REFUSED)]}, clock=HastyClock())

    async def refuse_a_worker() -> None:
        os.kill(cluster.pid("worker-0"), signal.SIGUSR1)
        await until(lambda: cluster.processes["worker-0"].state == State.FAILED)
        assert cluster.processes["worker-0"].restarts == 0
        assert cluster.processes["api"].state == State.READY

    assert await run_with(cluster, refuse_a_worker) == EXIT_REFUSED
    assert any("worker-0 is refused for the reason above: it stays down" in line for line in cluster.shown)


async def test_a_process_that_ends_while_starting_stops_everything_with_its_exit_code(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(options={"coordinator": ["--exit-at-once", "3", "--say", "no such setting"]})
    with pytest.raises(StartFailed, match="coordinator ended with exit code 3") as failed:
        await run_with(cluster, for_ever)
    assert failed.value.exit_code == 3
    assert "[coordinator] no such setting" in cluster.shown
    assert cluster.events() == ["metrics start", "coordinator start", "metrics stop"]


async def test_a_process_that_is_killed_while_starting_starts_again_until_that_is_too_often(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(options={"metrics": ["--never-ready"]}, clock=HastyClock())

    async def kill_it_each_time() -> None:
        killed: set[int | None] = {None}
        await until(lambda: "metrics" in cluster.processes)
        while len(killed) <= 5:
            await until(lambda: cluster.processes["metrics"].pid not in killed)
            killed.add(cluster.pid("metrics"))
            os.kill(cluster.pid("metrics"), signal.SIGABRT)

    async with asyncio.TaskGroup() as group:
        group.create_task(kill_it_each_time())
        with pytest.raises(StartFailed, match="metrics ended too often, the last time with signal 6") as failed:
            await run_with(cluster, for_ever)
    assert failed.value.exit_code == 128 + signal.SIGABRT


async def test_a_process_that_never_gets_ready_is_given_up_after_its_time(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(options={"metrics": ["--never-ready"]}, ready_within_s=0.5)
    with pytest.raises(StartFailed, match=r"metrics was not ready within 0\.5 s"):
        await run_with(cluster, for_ever)


async def test_a_process_that_is_killed_while_starting_gets_no_more_time_to_start(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(options={"metrics": ["--never-ready"]}, ready_within_s=1.0, clock=HastyClock())
    num_kills = 0

    async def kill_it_now_and_then() -> None:
        nonlocal num_kills
        while True:
            await asyncio.sleep(0.6)
            if cluster.processes["metrics"].pid is not None:
                os.kill(cluster.pid("metrics"), signal.SIGKILL)
                num_kills += 1

    killing = asyncio.create_task(kill_it_now_and_then())
    try:
        with pytest.raises(StartFailed, match=r"metrics was not ready within 1 s"):
            await run_with(cluster, for_ever)
    finally:
        killing.cancel()
    assert num_kills <= 2


async def test_asked_a_second_time_it_does_not_wait_for_the_grace(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(options={"api": ["--ignore-sigterm"]})
    pids: list[int] = []

    async def ask_twice() -> None:
        pids.extend(process.pid for process in cluster.processes.values() if process.pid is not None)
        cluster.supervisor.ask_to_stop()
        cluster.supervisor.ask_to_stop()

    await run_with(cluster, ask_twice)
    assert len(pids) == 5
    assert all(is_gone(pid) for pid in pids)


async def test_asked_to_stop_while_starting_it_starts_no_more(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(options={"coordinator": ["--never-ready"]})

    async def stop_soon() -> None:
        await until(lambda: "coordinator start" in cluster.events())
        cluster.supervisor.ask_to_stop()

    async with asyncio.TaskGroup() as group:
        group.create_task(stop_soon())
        code = await run_with(cluster, for_ever)
    assert code == 0
    assert not any(event.startswith(("worker", "api")) for event in cluster.events())


async def test_a_stop_does_not_wait_for_what_follows_the_start(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(kinds=(Kind.METRICS,))

    async def waits_for_ever() -> None:
        cluster.supervisor.ask_to_stop()
        await for_ever()

    async with asyncio.timeout(LIMIT_S):
        assert await cluster.supervisor.run(waits_for_ever) == 0


async def test_output_goes_to_the_log_untouched(make_cluster: MakeCluster, tmp_path: Path) -> None:
    line = '{"level": "warning", "event": "something"}'
    cluster = make_cluster(kinds=(Kind.METRICS,), options={"metrics": ["--say", line]})

    async def nothing() -> None:
        pass

    await run_with(cluster, nothing)
    assert (tmp_path / "metrics.log").read_text() == f"{line}\n"
    assert f"[metrics] {line}" in cluster.shown


async def test_a_child_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """The parent here is a small process of its own that starts one child as the supervisor does."""
    port = free_base_port(0)
    script = f"""
import asyncio, os, sys
from pathlib import Path
from services.cli.process import Child
from services.cli.stores.rotating_log import RotatingLog

async def main():
    command = [sys.executable, {str(FAKE)!r}, "{port}"]
    child = await Child.start("fake", command, dict(os.environ), RotatingLog(Path({str(tmp_path / "fake.log")!r})))
    print(child.pid, flush=True)
    await child.run_to_its_end(print)

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert parent.stdout is not None
    child_pid = int(await parent.stdout.readline())
    async with asyncio.timeout(LIMIT_S):
        while not await answers_ready("127.0.0.1", port):  # noqa: ASYNC110  as above
            await asyncio.sleep(0.02)
    parent.kill()
    await parent.wait()
    await until(lambda: is_gone(child_pid))
