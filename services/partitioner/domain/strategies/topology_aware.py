"""Which nodes, in which order, with which layers, the links between them counted."""

from collections.abc import Sequence

from services.partitioner.domain.placement import SeatRoom
from services.partitioner.domain.strategies.base import Strategy
from services.partitioner.domain.strategies.choosing import best_seats
from shared.domain.plan import Objective, Partition


class TopologyAware(Strategy):
    """The optimum for small clusters, a search beyond. Chooses the number of stages where nobody asks for one."""

    name = "topology_aware"
    chooses_stages = True

    def seat(
        self, rooms: Sequence[SeatRoom], num_layers: int, num_stages: int | None, objective: Objective
    ) -> tuple[Partition, ...] | None:
        return best_seats(rooms, num_layers, num_stages, objective)
