"""`butterfly status`: which processes run, and which layers are where."""

import asyncio
import json
import sys

from services.cli.clients.gateway import Gateway
from services.cli.commands.arguments import Invocation, Subcommands, add_api
from services.cli.commands.nodes import node_table
from services.cli.domain.cluster import Kind
from services.cli.domain.table import table
from services.cli.local_cluster import LOOPBACK
from services.cli.probe import answers_ready, redis_answers
from services.cli.stores.data_dir import ClusterStatus, DataDir, ProcessStatus
from shared.domain.errors import InvalidInput, PeerUnavailable

READY = "ready"


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser("status", help="the processes of a cluster, its workers and their layers")
    add_api(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(invocation: Invocation) -> int:
    arguments = invocation.arguments
    if arguments.api:
        processes: tuple[ProcessStatus, ...] = ()
        gateway = Gateway(arguments.api)
        nodes, trouble = gateway.nodes_json(), ""
    else:
        data = DataDir(arguments.data_dir)
        running = data.running()
        if running is None:
            raise InvalidInput(
                f"no cluster runs in {data.path}: start one by `butterfly up`, or name a gateway by --api"
            )
        processes = asyncio.run(_asked(running))
        gateway = Gateway(running.api_url)
        nodes, trouble = _nodes_or_trouble(gateway)
    if arguments.json:
        print(json.dumps({"processes": [_as_json(process) for process in processes], "nodes": nodes}, indent=2))
    else:
        if processes:
            print(_process_table(processes), end="\n\n")
        print(node_table(gateway.parsed_nodes(nodes)))
    if trouble:
        print(f"butterfly: {trouble}", file=sys.stderr)
    return 0


async def _asked(running: ClusterStatus) -> tuple[ProcessStatus, ...]:
    """The processes as the supervisor saw them last; those said to be ready are asked whether they still are."""

    async def ask(process: ProcessStatus) -> ProcessStatus:
        if process.state != READY:
            return process
        if process.name == Kind.REDIS:
            is_ready = await redis_answers(LOOPBACK, process.port)
        else:
            is_ready = await answers_ready(running.host, process.port)
        return process if is_ready else process.model_copy(update={"state": "not ready"})

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(process)) for process in running.processes]
    return tuple(task.result() for task in asked)


def _nodes_or_trouble(gateway: Gateway) -> tuple[list[object], str]:
    """While a cluster starts its gateway is the last to come."""
    try:
        return gateway.nodes_json(), ""
    except PeerUnavailable as error:
        return [], error.message


def _as_json(process: ProcessStatus) -> dict[str, object]:
    return {
        "name": process.name,
        "pid": process.pid,
        "port": process.port,
        "ready": process.state == READY,
        "restarts": process.restarts,
    }


def _process_table(processes: tuple[ProcessStatus, ...]) -> str:
    rows = [
        (process.name, str(process.pid or "-"), str(process.port), process.state, str(process.restarts))
        for process in processes
    ]
    return table(("PROCESS", "PID", "PORT", "STATE", "RESTARTS"), rows)
