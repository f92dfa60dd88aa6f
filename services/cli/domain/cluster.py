"""What a local cluster consists of: its processes, their ports, and the order in which they start and stop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


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

REPLICATED = (Kind.API, Kind.SCHEDULER, Kind.PARTITIONER, Kind.COORDINATOR)
"""Of which there may be several."""
_PORTS_APART = 100
"""Between two replicas of a service."""

_PORT_SETTINGS = {
    Kind.API: "api.bind_address",
    Kind.SCHEDULER: "scheduling.bind_address",
    Kind.PARTITIONER: "partition.bind_address",
    Kind.COORDINATOR: "coordination.bind_address",
    Kind.METRICS: "metrics.bind_address",
    Kind.REDIS: "redis.url",
    Kind.WORKER: "network.listen_address",
}


ONE_EACH: Mapping[Kind, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of one process in the cluster."""

    kind: Kind
    name: str
    """`api`, `api-1`, `worker-0`, …: what logs, status and messages call it."""
    port: int
    index: int = 0
    """Among the processes of its kind."""

    @property
    def port_setting(self) -> str:
        return _PORT_SETTINGS[self.kind]


def seats(
    base_port: int, num_workers: int, *, with_redis: bool, replicas: Mapping[Kind, int] = ONE_EACH
) -> tuple[Seat, ...]:
    """All processes, in start order. `replicas`: how many of a service, where not one."""
    found: list[Seat] = []
    for kind in (kind for together in START_ORDER for kind in together):
        if kind is Kind.WORKER:
            port = port_of(base_port, kind)
            found += [Seat(kind, f"{kind}-{index}", port + index, index) for index in range(num_workers)]
        elif kind is not Kind.REDIS or with_redis:
            found += [
                Seat(kind, f"{kind}-{index}" if index else kind.value, port_of(base_port, kind, index), index)
                for index in range(replicas.get(kind, 1))
            ]
    return tuple(found)


def port_of(base_port: int, kind: Kind, index: int = 0) -> int:
    """Of the replica with this index."""
    return base_port + _OFFSETS[kind] + index * _PORTS_APART


def waves(wanted: Sequence[Seat]) -> tuple[tuple[Seat, ...], ...]:
    """What starts together."""
    grouped = (tuple(seat for seat in wanted if seat.kind in kinds) for kinds in START_ORDER)
    return tuple(wave for wave in grouped if wave)


def stop_waves(running: Sequence[Seat]) -> tuple[tuple[Seat, ...], ...]:
    """What stops together."""
    grouped = (tuple(seat for seat in running if seat.kind in kinds) for kinds in STOP_ORDER)
    return tuple(wave for wave in grouped if wave)
