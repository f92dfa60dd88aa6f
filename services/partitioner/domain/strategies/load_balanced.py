"""Load shared by speed, as if links cost nothing."""

from collections.abc import Sequence

from services.partitioner.domain.hops import NoHops
from services.partitioner.domain.placement import SeatRoom
from services.partitioner.domain.strategies.base import Strategy
from services.partitioner.domain.strategies.choosing import best_seats
from services.partitioner.domain.strategies.parametric import balanced
from shared.domain.plan import Objective, Partition


class LoadBalanced(Strategy):
    """For throughput the slowest stage is as fast as the nodes allow; for latency all stages together are."""

    name = "load_balanced"

    def seat(
        self, rooms: Sequence[SeatRoom], num_layers: int, num_stages: int | None, objective: Objective
    ) -> tuple[Partition, ...] | None:
        if num_stages is None or not num_stages <= min(len(rooms), num_layers):
            return None
        if objective is Objective.THROUGHPUT:
            return balanced(rooms, num_layers, num_stages)
        return best_seats(rooms, num_layers, num_stages, objective, hops=NoHops)
