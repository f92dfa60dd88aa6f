"""Starts the processes of a cluster in order, keeps them running, stops them in order."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from services.cli.domain.cluster import Kind, Seat, stop_waves, waves
from services.cli.domain.output import terminal_line
from services.cli.domain.restart import RestartHistory, after_exit, exit_code_of
from services.cli.process import Child
from services.cli.stores.data_dir import ProcessStatus
from services.cli.stores.rotating_log import RotatingLog
from shared.runtime.clock import Clock
from shared.runtime.giving_up import EXIT_REFUSED

STOP_LIMIT_S = 35.0
"""A service has 5 s of delay and 25 s of draining; then it is killed."""
REDIS_HURRY_LIMIT_S = 5.0
CANNOT_START = 127
ASK_EVERY_S = 0.1


class State(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class StartFailed(Exception):
    """While the cluster started a process ended by itself, was killed too often, or was not ready in time."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """How one process is run."""

    seat: Seat
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """All of it."""
    ready_within_s: float
    is_ready: Callable[[], Awaitable[bool]]
    logs_json: bool = True


@dataclass(slots=True)
class _Process:
    spec: ProcessSpec
    state: State = State.WAITING
    child: Child | None = None
    restarts: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """It became ready for the first time, or will not."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """It is gone and will not be started again."""

    @property
    def name(self) -> str:
        return self.spec.seat.name


class Supervisor:
    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        clock: Clock,
        logs: Path,
        show: Callable[[str], None],
        publish: Callable[[tuple[ProcessStatus, ...]], None],
    ) -> None:
        """`show`: a line for the operator. `publish`: hears the state of all processes whenever it changes."""
        self._processes = {spec.seat: _Process(spec) for spec in specs}
        self._clock = clock
        self._logs = logs
        self._show = show
        self._publish = publish
        self._started = False
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._start_failure: StartFailed | None = None
        self._first_failure: int | None = None

    def ask_to_stop(self) -> None:
        """Stop in order; asked a second time, stop at once. May be called from a signal handler of the loop."""
        if self._stopping.is_set():
            self._hurry.set()
        self._begin_to_stop()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    async def run(self, started: Callable[[], Awaitable[None]]) -> int:
        """Start everything, call `started` (which raises nothing), keep everything running until asked to stop.

        Returns 0, or the exit code of the first process that failed for good. Raises `StartFailed`, everything being
        stopped again.
        """
        async with asyncio.TaskGroup() as group:
            try:
                await self._start(group)
                if not self.is_stopping:
                    self._started = True
                    await self._unless_stopped(started)
                    await self._stopping.wait()
            finally:
                self._begin_to_stop()
                await self._stop()
        if self._start_failure is not None:
            raise self._start_failure
        return self._first_failure or 0

    def _begin_to_stop(self) -> None:
        self._stopping.set()
        for process in self._processes.values():
            process.settled.set()  # nobody waits for a start any more

    async def _start(self, group: asyncio.TaskGroup) -> None:
        for wave in waves(list(self._processes)):
            members = [self._processes[seat] for seat in wave]
            for process in members:
                group.create_task(self._keep_running(process), name=process.name)
            for process in members:
                await process.settled.wait()
            if self.is_stopping:
                return

    async def _keep_running(self, process: _Process) -> None:
        history, first_began_s = RestartHistory(), self._clock.now_s()
        try:
            while not self.is_stopping:
                began_s = self._clock.now_s()
                code = await self._run_once(process, first_began_s)
                if self.is_stopping:
                    break
                if not self._started and code >= 0:  # it ended itself, so it would again
                    self._fail_start(process, f"ended with {_ending(code)} while starting", exit_code_of(code))
                    break
                if code == EXIT_REFUSED:  # its last line, shown just before, says why
                    self._give_up(process, code, "is refused for the reason above")
                    return
                decision = after_exit(history, started_s=began_s, exited_s=self._clock.now_s())
                history = decision.history
                if decision.delay_s is None:
                    why = f"ended too often, the last time with {_ending(code)}"
                    if not self._started:
                        self._fail_start(process, why, exit_code_of(code))
                        break
                    self._give_up(process, code, why)
                    return
                self._say(f"{process.name} ended with {_ending(code)}; it starts again in {decision.delay_s:g} s")
                process.restarts += 1
                self._enter(process, State.RESTARTING)
                await self._first_of(self._stopping, limit_s=decision.delay_s)
            self._enter(process, State.STOPPED)
        finally:
            process.settled.set()
            process.ended.set()

    async def _run_once(self, process: _Process, first_began_s: float) -> int:
        """From start to exit; its return code. `first_began_s`: from when on readiness is waited for while the cluster
        starts."""
        spec = process.spec
        log = RotatingLog(self._logs / f"{process.name}.log")
        try:
            process.child = await Child.start(process.name, spec.command, spec.environment, log)
        except OSError as error:
            log.close()
            self._say(f"{process.name} cannot be started: {error.strerror}")
            return CANNOT_START
        self._enter(process, State.STARTING)
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch_readiness(process, first_began_s))
            code = await process.child.run_to_its_end(lambda line: self._hear(process, line))
            watch.cancel()
        return code

    async def _watch_readiness(self, process: _Process, first_began_s: float) -> None:
        while not await process.spec.is_ready():
            if not self._started and self._clock.now_s() - first_began_s > process.spec.ready_within_s:
                self._fail_start(process, f"was not ready within {process.spec.ready_within_s:g} s", 1)
                return
            await self._clock.sleep(ASK_EVERY_S)
        if not self.is_stopping:
            self._enter(process, State.READY)
        process.settled.set()

    def _hear(self, process: _Process, line: str) -> None:
        spec = process.spec
        shown = terminal_line(process.name, line, logs_json=spec.logs_json, is_stopping=self.is_stopping)
        if shown is not None:
            self._show(shown)

    def _fail_start(self, process: _Process, what: str, exit_code: int) -> None:
        if self._start_failure is None:
            message = f"{process.name} {what} (log: {self._logs / process.name}.log)"
            self._start_failure = StartFailed(message, exit_code)
        self._begin_to_stop()

    def _give_up(self, process: _Process, code: int, why: str) -> None:
        self._say(f"{process.name} {why}: it stays down, the others go on")
        if self._first_failure is None:
            self._first_failure = exit_code_of(code)
        self._enter(process, State.FAILED)

    async def _unless_stopped(self, work: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            await work()

        async with asyncio.TaskGroup() as group:
            both = {group.create_task(run()), group.create_task(_until(self._stopping))}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in both:
                task.cancel()

    async def _first_of(self, *events: asyncio.Event, limit_s: float) -> None:
        """Wait for any of the events, at most this long."""
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(_until(event)) for event in events]
            waiting.append(group.create_task(self._clock.sleep(limit_s)))
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()

    async def _stop(self) -> None:
        alive = [seat for seat, process in self._processes.items() if process.state is not State.WAITING]
        for wave in stop_waves(alive):
            async with asyncio.TaskGroup() as group:
                for seat in wave:
                    group.create_task(self._stop_one(self._processes[seat]))

    async def _stop_one(self, process: _Process) -> None:
        child = process.child
        if process.ended.is_set() or child is None:
            return
        child.terminate()  # a Redis server takes it as SHUTDOWN
        if process.spec.seat.kind is not Kind.REDIS:
            await self._first_of(process.ended, self._hurry, limit_s=STOP_LIMIT_S)
        else:  # even a hurry does not kill it while it writes its file
            limit_s = REDIS_HURRY_LIMIT_S if self._hurry.is_set() else STOP_LIMIT_S
            await self._first_of(process.ended, limit_s=limit_s)
        if not process.ended.is_set():
            child.kill()
        await process.ended.wait()

    def _enter(self, process: _Process, state: State) -> None:
        process.state = state
        self._publish(tuple(_status(each) for each in self._processes.values()))

    def _say(self, text: str) -> None:
        self._show(f"butterfly: {text}")


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def _status(process: _Process) -> ProcessStatus:
    is_running = process.child is not None and process.state in {State.STARTING, State.READY}
    return ProcessStatus(
        name=process.name,
        pid=process.child.pid if process.child is not None and is_running else None,
        port=process.spec.seat.port,
        state=process.state,
        restarts=process.restarts,
    )


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
