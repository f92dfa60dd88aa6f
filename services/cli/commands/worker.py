"""`butterfly worker`: this machine joins a running cluster as a worker, and stays in it when the worker crashes."""

import asyncio
import math
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from services.cli.commands.arguments import Invocation, Subcommands, positive
from services.cli.domain.cluster import Kind, Seat
from services.cli.domain.environment import EVERYWHERE, bracketed, join_environment
from services.cli.domain.memory import worker_memory_mb
from services.cli.foreground import STOP_SIGNALS, show
from services.cli.machine import available_memory_bytes
from services.cli.probe import answers_ready, outward_address, port_is_free
from services.cli.supervisor import ProcessSpec, StartFailed, Supervisor
from shared.domain.errors import InvalidInput
from shared.llama.library import find_library_file, open_library_file
from shared.runtime.clock import SystemClock
from shared.runtime.config import PARENT_PID_VARIABLE, load_config, split_address

_PORT = 8090
_LOOPBACK = "127.0.0.1"


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser("worker", help="join a running cluster as a worker")
    parser.add_argument("--join", required=True, metavar="URL", help="the cluster's coordinator")
    parser.add_argument("--token", required=True, metavar="T", help="the cluster's join token")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="default: the address that faces the coordinator, port 8090"
    )
    parser.add_argument("--advertise", metavar="HOST:PORT", help="how other workers reach it (default: as --listen)")
    parser.add_argument("--data-dir", type=Path, default=Path(".butterfly/worker"), metavar="D", help="(%(default)s)")
    parser.add_argument("--memory-mb", type=positive, metavar="M", help="memory to use (default: most of what is free)")
    parser.set_defaults(run=run)


def run(invocation: Invocation) -> int:
    """Until it is asked to stop. The worker is a process of its own: a native abort of the engine ends that alone, and
    it starts again as the same node."""
    arguments = invocation.arguments
    coordinator_url = arguments.join.rstrip("/")
    listen = arguments.listen or f"{bracketed(_facing(coordinator_url))}:{_PORT}"
    host, port = _address(listen, "--listen")
    advertise = arguments.advertise or (
        f"{bracketed(_facing(coordinator_url))}:{port}" if host in EVERYWHERE else listen
    )
    _address(advertise, "--advertise")
    if not port_is_free(host, port):
        raise InvalidInput(f"port {port} of {host} is taken: choose another by --listen")
    variables = join_environment(
        coordinator_url=coordinator_url,
        join_token=arguments.token,
        listen=listen,
        advertise=advertise,
        data_dir=str(arguments.data_dir.absolute()),
        memory_mb=arguments.memory_mb or worker_memory_mb(available_memory_bytes(), 1),
        inherited=invocation.environ,
    )
    environment = {**invocation.environ, **variables, PARENT_PID_VARIABLE: str(os.getpid())}
    load_config(None, environment)  # complains in terms of the settings before the worker does
    open_library_file(find_library_file())
    ready_host = _LOOPBACK if host in EVERYWHERE else host
    spec = ProcessSpec(
        Seat(Kind.WORKER, "worker", port),
        (sys.executable, "-m", "services.worker"),
        environment,
        ready_within_s=math.inf,  # the coordinator may come later
        is_ready=lambda: answers_ready(ready_host, port),
    )
    logs: Path = arguments.data_dir.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    try:
        return asyncio.run(_keep(spec, logs, coordinator_url))
    except StartFailed as error:
        show(f"butterfly: {error.message}")
        return error.exit_code


async def _keep(spec: ProcessSpec, logs: Path, coordinator_url: str) -> int:
    supervisor = Supervisor((spec,), clock=SystemClock(), logs=logs, show=show, publish=lambda _states: None)
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, supervisor.ask_to_stop)

    async def joined() -> None:
        show(f"butterfly: the worker has joined {coordinator_url}; its log is in {logs}")

    return await supervisor.run(joined)


def _facing(coordinator_url: str) -> str:
    """The address of this machine by which the coordinator, and so the other workers, most likely reach it."""
    host = urlsplit(coordinator_url).hostname
    if host is None:
        raise InvalidInput(f"--join: {coordinator_url!r} should be a URL such as http://192.168.1.10:8083")
    return outward_address(host)


def _address(text: str, option: str) -> tuple[str, int]:
    try:
        return split_address(text)
    except ValueError as error:
        raise InvalidInput(f"{option}: {error}") from None
