"""What a strategy is: it seats a given number of stages."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from services.partitioner.domain.placement import SeatRoom
from shared.domain.plan import LayerRange, Objective, Partition


class Strategy(ABC):
    name: str
    chooses_stages: bool = False
    """Whether `seat` takes None for the number of stages, and chooses it."""

    @abstractmethod
    def seat(
        self, rooms: Sequence[SeatRoom], num_layers: int, num_stages: int | None, objective: Objective
    ) -> tuple[Partition, ...] | None:
        """`num_stages` stages that hold layers [0, num_layers) in order, each at least one, on different nodes.

        None when they do not fit into the nodes' memory. `rooms` are in order of node id; equal input gives equal
        seats. Pure; may take a tenth of a second for a thousand nodes.
        """


def partitions(ends: Sequence[int], rooms: Sequence[SeatRoom]) -> tuple[Partition, ...]:
    """Stage i on rooms[i] ends at layer ends[i]."""
    starts = (0, *ends[:-1])
    return tuple(
        Partition(stage, room.node.node_id, LayerRange(start, end))
        for stage, (start, end, room) in enumerate(zip(starts, ends, rooms, strict=True))
    )
