"""Turns the operator's wishes into the processes of a local cluster."""

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.cli.domain.cluster import Kind, Seat, port_of, seats
from services.cli.domain.environment import EVERYWHERE, Layout, environment_of
from services.cli.domain.memory import worker_memory_mb
from services.cli.machine import available_memory_bytes
from services.cli.probe import answers_ready, outward_address, port_is_free, redis_answers
from services.cli.stores.data_dir import DataDir, Secrets
from services.cli.supervisor import ProcessSpec
from shared.domain.errors import InvalidInput
from shared.domain.task import Verification
from shared.registry.server import find_redis_server, server_command
from shared.runtime.config import Config, CoordinationConfig, check_exposure, is_loopback

LOOPBACK = "127.0.0.1"
_READY_WITHIN_S = 30.0
_WORKER_READY_WITHIN_S = 120.0
"""All workers start at once, on the same few cores."""
_HIGHEST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Wishes:
    """What `butterfly up` was asked for."""

    num_workers: int
    base_port: int
    host: str
    model: str
    num_stages: int | None
    replicas: Mapping[Kind, int] = field(default_factory=dict)
    """How many of a service, where not one."""


@dataclass(frozen=True, slots=True)
class LocalCluster:
    layout: Layout
    specs: tuple[ProcessSpec, ...]

    def url(self, kind: Kind) -> str:
        return self.layout.url(kind)


def plan_cluster(
    wishes: Wishes, config: Config, data: DataDir, *, parent_pid: int, environ: Mapping[str, str]
) -> LocalCluster:
    """Raises `InvalidInput` and `ConfigError` for what cannot run here, `RegistryUnavailable` without a server."""
    own_redis = config.redis.url is None
    wanted = seats(wishes.base_port, wishes.num_workers, with_redis=own_redis, replicas=wishes.replicas)
    if max(seat.port for seat in wanted) > _HIGHEST_PORT:
        raise InvalidInput(f"{len(wanted)} processes need ports beyond {_HIGHEST_PORT}: choose a lower --base-port")
    if len({seat.port for seat in wanted}) < len(wanted):
        raise InvalidInput("so many workers need the ports of the services' replicas: start fewer of the ones here")
    check_exposure(config, "api", f"{wishes.host}:{wishes.base_port}")
    layout = _layout(wishes, config, data.secrets(), data.path, parent_pid)
    check_ports(wanted, wishes.host)
    specs = tuple(_spec(seat, layout, data, environ) for seat in wanted)
    return LocalCluster(layout, specs)


def check_ports(wanted: Sequence[Seat], host: str) -> None:
    """Raise `InvalidInput` naming the first port that is taken, and the setting it belongs to."""
    for seat in wanted:
        listens_on = LOOPBACK if seat.kind is Kind.REDIS else host
        if not port_is_free(listens_on, seat.port):
            raise InvalidInput(
                f"port {seat.port} of {listens_on} is taken, and {seat.name} needs it ({seat.port_setting}):"
                " free it, or choose other ports with --base-port"
            )


def _layout(wishes: Wishes, config: Config, secrets: Secrets, data_dir: Path, parent_pid: int) -> Layout:
    configured = config.redis.url
    share_mb = worker_memory_mb(available_memory_bytes(), wishes.num_workers)
    return Layout(
        host=wishes.host,
        reach_host=_reach_host(wishes),
        base_port=wishes.base_port,
        data_dir=str(data_dir),
        redis_url=configured.get_secret_value()
        if configured is not None
        else f"redis://{LOOPBACK}:{port_of(wishes.base_port, Kind.REDIS)}/0",
        service_token=config.security.service_token.get_secret_value() or secrets.service_token,
        join_token=config.security.join_token.get_secret_value() or secrets.join_token,
        preload_models=tuple(dict.fromkeys((wishes.model, *config.scheduling.preload_models))),
        num_stages=wishes.num_stages or config.partition.num_stages,
        verification=_verification(wishes, config.coordination),
        worker_memory_mb=config.worker.memory_mb or share_mb,
        parent_pid=parent_pid,
        replicas=wishes.replicas,
    )


def _verification(wishes: Wishes, asked: CoordinationConfig) -> str:
    """Too few workers on a cluster that nobody else can join are still good for trying things out: not verified."""
    is_enough = 0 < 2 * asked.max_byzantine < wishes.num_workers
    can_grow = not is_loopback(f"{wishes.host}:{wishes.base_port}")
    return asked.default_verification if is_enough or can_grow else Verification.NONE.value


def _reach_host(wishes: Wishes) -> str:
    if is_loopback(f"{wishes.host}:{wishes.base_port}"):
        return wishes.host
    return outward_address() if wishes.host in EVERYWHERE else wishes.host


def _spec(seat: Seat, layout: Layout, data: DataDir, environ: Mapping[str, str]) -> ProcessSpec:
    environment = environment_of(seat, layout, environ)
    if seat.kind is Kind.REDIS:
        command = tuple(server_command(find_redis_server(), seat.port, data.redis))
        ready = _asking(redis_answers, LOOPBACK, seat.port)
        return ProcessSpec(seat, command, environment, _READY_WITHIN_S, ready, logs_json=False)
    within_s = _WORKER_READY_WITHIN_S if seat.kind is Kind.WORKER else _READY_WITHIN_S
    command = (sys.executable, "-m", f"services.{seat.kind}")
    return ProcessSpec(seat, command, environment, within_s, _asking(answers_ready, layout.reach_host, seat.port))


def _asking(ask: Callable[[str, int], Awaitable[bool]], host: str, port: int) -> Callable[[], Awaitable[bool]]:
    return lambda: ask(host, port)
