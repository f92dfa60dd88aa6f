"""Ports for clusters of tests."""

import random
from collections.abc import Mapping

from services.cli.domain.cluster import ONE_EACH, Kind, seats
from services.cli.probe import port_is_free

_LOWEST, _HIGHEST = 20_000, 32_000  # below the range from which the kernel takes the ports of outgoing connections


def free_base_port(num_workers: int, replicas: Mapping[Kind, int] = ONE_EACH) -> int:
    """A base port whose whole range is free now. Random, so that runs beside each other do not meet."""
    rng = random.Random()
    for _ in range(200):
        base_port = rng.randrange(_LOWEST, _HIGHEST, 20)
        wanted = seats(base_port, num_workers, with_redis=True, replicas=replicas)
        if all(port_is_free("127.0.0.1", seat.port) for seat in wanted):
            return base_port
    raise AssertionError("no free range of ports on this machine")
