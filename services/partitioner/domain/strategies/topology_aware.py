"""Which nodes, in which order, with which layers, the links between them counted."""

from collections.abc import Sequence

from services.partitioner.domain.hops import Hops
from services.partitioner.domain.placement import SeatRoom
from services.partitioner.domain.strategies.base import Strategy, partitions
from services.partitioner.domain.strategies.choosing import best_cut
from services.partitioner.domain.strategies.pipeline import Pipelines
from shared.domain.plan import Objective, Partition


class TopologyAware(Strategy):
    """The optimum for small clusters, a search beyond. Chooses the number of stages where nobody asks for one."""

    name = "topology_aware"
    chooses_stages = True

    def seat(
        self, rooms: Sequence[SeatRoom], num_layers: int, num_stages: int | None, objective: Objective
    ) -> tuple[Partition, ...] | None:
        if num_stages is not None and not num_stages <= min(len(rooms), num_layers):
            return None
        cut = best_cut(Pipelines(rooms, num_layers, Hops(rooms)), num_stages, objective)
        return None if cut is None else partitions(cut.ends, [rooms[index] for index in cut.order])
