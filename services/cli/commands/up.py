"""`butterfly up`: a whole cluster on this machine."""

import asyncio
import json
import os
import shlex
import sys
from argparse import ArgumentTypeError
from collections.abc import Mapping
from pathlib import Path

from services.cli.commands.arguments import DEMO, Invocation, Subcommands, add_data_dir, not_negative, positive
from services.cli.domain.cluster import ONE_EACH, REPLICATED, Kind
from services.cli.domain.model_names import SUFFIX, checked, name_from
from services.cli.foreground import STOP_SIGNALS, show
from services.cli.local_cluster import LOOPBACK, LocalCluster, Wishes, plan_cluster
from services.cli.model_adding import add_model
from services.cli.stores.data_dir import ClusterStatus, DataDir, ProcessStatus
from services.cli.stores.demo_model import DEMO_MODEL, pull
from services.cli.stores.model_folder import ModelFolder
from services.cli.supervisor import StartFailed, Supervisor
from shared.llama.library import find_library_file, open_library_file
from shared.runtime.clock import Clock, SystemClock
from shared.runtime.config import load_config

_VERIFIED = {
    "none": "are NOT verified: fewer workers than that takes, or switched off",
    "audit": "are verified: every token is computed by nodes that check each other (audit)",
    "quorum": "are verified: every token is computed by a quorum of nodes (quorum)",
}
MAX_REPLICAS = 9


def add_to(commands: Subcommands) -> None:
    parser = commands.add_parser(
        "up", help="start a whole cluster on this machine", description="Start all services, workers and Redis here."
    )
    parser.add_argument("--workers", type=not_negative, default=4, metavar="N", help="worker processes (%(default)s)")
    parser.add_argument(
        "--base-port",
        type=positive,
        default=8080,
        metavar="P",
        help="port of the gateway, the others follow (%(default)s)",
    )
    add_data_dir(parser)
    parser.add_argument("--model", default=DEMO, metavar="M", help="name of a model, or a GGUF file (%(default)s)")
    parser.add_argument("--stages", type=positive, metavar="K", help="cut the model into K stages (default: as fits)")
    parser.add_argument(
        "--replicas",
        type=_replicas,
        default=ONE_EACH,
        metavar="SERVICE=N,...",
        help=f"several processes of {', '.join(REPLICATED)} (default: one each)",
    )
    parser.add_argument("--host", default=LOOPBACK, metavar="ADDR", help="address to listen on (%(default)s)")
    parser.set_defaults(run=run)


def run(invocation: Invocation) -> int:
    arguments = invocation.arguments
    config = load_config(None, invocation.environ)
    data = DataDir(arguments.data_dir)
    data.prepare()
    with data.lock():
        data.clear_status()
        open_library_file(find_library_file())  # the workers would miss it, too, but say so one by one
        wishes = Wishes(
            num_workers=arguments.workers,
            base_port=arguments.base_port,
            host=arguments.host,
            model=name_from(arguments.model) if _is_file(arguments.model) else checked(arguments.model),
            num_stages=arguments.stages,
            replicas=arguments.replicas,
        )
        cluster = plan_cluster(wishes, config, data, parent_pid=os.getpid(), environ=invocation.environ)
        _ensure_model(arguments.model, ModelFolder(data.models))
        try:
            return asyncio.run(_Up(cluster, wishes, data, SystemClock()).run())
        except StartFailed as error:
            show(f"butterfly: {error.message}")
            return error.exit_code
        finally:
            data.clear_status()


class _Up:
    def __init__(self, cluster: LocalCluster, wishes: Wishes, data: DataDir, clock: Clock) -> None:
        self._cluster = cluster
        self._wishes = wishes
        self._data = data
        self._clock = clock

    async def run(self) -> int:
        supervisor = Supervisor(
            self._cluster.specs, clock=self._clock, logs=self._data.logs, show=show, publish=self._publish
        )
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._stop, supervisor)
        show(f"butterfly: starting {len(self._cluster.specs)} processes, logs in {self._data.logs}")
        return await supervisor.run(self._announce)

    def _stop(self, supervisor: Supervisor) -> None:
        if not supervisor.is_stopping:
            show("butterfly: stopping; once more to stop at once")
        supervisor.ask_to_stop()

    def _publish(self, processes: tuple[ProcessStatus, ...]) -> None:
        self._data.write_status(
            ClusterStatus(
                pid=os.getpid(),
                host=self._cluster.layout.reach_host,
                api_url=self._cluster.url(Kind.API),
                partitioner_url=self._cluster.url(Kind.PARTITIONER),
                coordinator_url=self._cluster.url(Kind.COORDINATOR),
                model=self._wishes.model,
                processes=processes,
            )
        )

    async def _announce(self) -> None:
        # Imported here: it brings the HTTP client along, which the other commands need not wait for.
        from services.cli.placing import why_not_placed

        needed, there = self._cluster.layout.num_stages or 1, self._wishes.num_workers
        if there < needed:
            not_placed = f"it needs {needed} workers, and there are {there}"
        else:
            not_placed = await why_not_placed(self._wishes.model, self._cluster.layout, self._clock)
        if not_placed:
            show(f"butterfly: {self._wishes.model} is not placed: {not_placed}; its tasks wait until it is")
        else:
            show(f"Butterfly is ready: {self._wishes.model} at {self._cluster.url(Kind.API)}/v1", sys.stdout)
        show(_instructions(self._cluster, self._wishes.model, self._data.path), sys.stdout)


def _replicas(text: str) -> Mapping[Kind, int]:
    """Of `scheduler=2,coordinator=2`. Raises `ArgumentTypeError` saying what would be right."""
    found: dict[Kind, int] = {}
    for part in text.split(","):
        name, _, count = part.strip().partition("=")
        if name not in REPLICATED or not count.isdecimal() or not 1 <= int(count) <= MAX_REPLICAS:
            raise ArgumentTypeError(
                f"{part!r} should be a service and a number up to {MAX_REPLICAS}, such as scheduler=2; services are"
                f" {', '.join(REPLICATED)}"
            )
        found[Kind(name)] = int(count)
    return found


def _is_file(model: str) -> bool:
    return model.endswith(SUFFIX) or os.sep in model


def _ensure_model(wanted: str, folder: ModelFolder) -> None:
    """The model is in the folder when this returns. Raises what fetching or adding it raises."""
    if _is_file(wanted):
        show(f"butterfly: checking {wanted}")
        added = add_model(wanted, folder, progress=lambda _there, _total: None)
        if added.notice:
            show(f"butterfly: {added.name}: {added.notice}")
    elif wanted == DEMO_MODEL.name:
        if not folder.path_of(wanted).exists():
            show(f"butterfly: fetching {wanted} ({DEMO_MODEL.file_bytes >> 20} MiB)")
        pull(wanted, folder)
    else:
        folder.existing(wanted)


def _instructions(cluster: LocalCluster, model: str, data_dir: Path) -> str:
    question = {"role": "user", "content": "Why is the sky blue?"}
    body = json.dumps({"model": model, "stream": True, "temperature": 0, "messages": [question]})
    api, folder = cluster.url(Kind.API), shlex.quote(str(data_dir))
    return f"""
  gateway      {api}
  answers      {_VERIFIED[cluster.layout.verification]}
  coordinator  {cluster.url(Kind.COORDINATOR)}
  metrics      {cluster.url(Kind.METRICS)}

Ask it something:
  curl -N {api}/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}
See what runs where:
  butterfly status --data-dir {folder}
Add a worker of another machine (the token is in {data_dir / "secrets.json"}):
  butterfly worker --join {cluster.url(Kind.COORDINATOR)} --token JOIN_TOKEN
Ctrl-C stops everything.
"""
