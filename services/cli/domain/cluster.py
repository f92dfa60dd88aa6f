"""What a local cluster consists of: its processes, their ports, and the order in which they start and stop."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    REDIS = "redis"
    METRICS = "metrics"
    PARTITIONER = "partitioner"
    COORDINATOR = "coordinator"
    SCHEDULER = "scheduler"
    WORKER = "worker"
    API = "api"


START_ORDER: tuple[tuple[Kind, ...], ...] = (
    (Kind.REDIS,),
    (Kind.METRICS, Kind.PARTITIONER),
    (Kind.COORDINATOR,),
    (Kind.SCHEDULER, Kind.WORKER),
    (Kind.API,),
)
"""Each is ready before the next starts; those that do not call one another start together."""

STOP_ORDER: tuple[frozenset[Kind], ...] = (
    frozenset({Kind.API}),
    frozenset({Kind.SCHEDULER}),
    frozenset({Kind.COORDINATOR}),
    frozenset({Kind.WORKER}),
    frozenset({Kind.PARTITIONER, Kind.METRICS}),
    frozenset({Kind.REDIS}),
)
"""Each is gone before the next is asked to go: what others write to ends after them."""

_OFFSETS = {
    Kind.API: 0,
    Kind.SCHEDULER: 1,
    Kind.PARTITIONER: 2,
    Kind.COORDINATOR: 3,
    Kind.METRICS: 4,
    Kind.REDIS: 5,
    Kind.WORKER: 10,
}

_PORT_SETTINGS = {
    Kind.API: "api.bind_address",
    Kind.SCHEDULER: "scheduling.bind_address",
    Kind.PARTITIONER: "partition.bind_address",
    Kind.COORDINATOR: "coordination.bind_address",
    Kind.METRICS: "metrics.bind_address",
    Kind.REDIS: "redis.url",
    Kind.WORKER: "network.listen_address",
}


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of one process in the cluster."""

    kind: Kind
    name: str
    """`api`, `worker-0`, …: what logs, status and messages call it."""
    port: int
    index: int = 0
    """Among the processes of its kind."""

    @property
    def port_setting(self) -> str:
        return _PORT_SETTINGS[self.kind]


def seats(base_port: int, num_workers: int, *, with_redis: bool) -> tuple[Seat, ...]:
    """All processes, in start order."""
    found: list[Seat] = []
    for kind in (kind for together in START_ORDER for kind in together):
        port = base_port + _OFFSETS[kind]
        if kind is Kind.WORKER:
            found += [Seat(kind, f"{kind}-{index}", port + index, index) for index in range(num_workers)]
        elif kind is not Kind.REDIS or with_redis:
            found.append(Seat(kind, kind.value, port))
    return tuple(found)


def last_port(base_port: int, num_workers: int) -> int:
    """The highest port that a cluster takes."""
    return base_port + max(_OFFSETS[Kind.REDIS], _OFFSETS[Kind.WORKER] + num_workers - 1)


def port_of(base_port: int, kind: Kind) -> int:
    return base_port + _OFFSETS[kind]


def waves(wanted: Sequence[Seat]) -> tuple[tuple[Seat, ...], ...]:
    """What starts together."""
    grouped = (tuple(seat for seat in wanted if seat.kind in kinds) for kinds in START_ORDER)
    return tuple(wave for wave in grouped if wave)


def stop_waves(running: Sequence[Seat]) -> tuple[tuple[Seat, ...], ...]:
    """What stops together."""
    grouped = (tuple(seat for seat in running if seat.kind in kinds) for kinds in STOP_ORDER)
    return tuple(wave for wave in grouped if wave)
