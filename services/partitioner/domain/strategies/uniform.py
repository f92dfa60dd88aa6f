"""Equal numbers of layers, whatever the nodes' speed: the plain strategy to compare others with."""

from collections.abc import Sequence
from itertools import accumulate

from services.partitioner.domain.placement import SeatRoom
from services.partitioner.domain.strategies.base import Strategy, partitions
from shared.domain.plan import Objective, Partition


class Uniform(Strategy):
    """The nodes with most memory (then by id) take equal stages; the first ones get a layer more if need be."""

    name = "uniform"

    def seat(
        self, rooms: Sequence[SeatRoom], num_layers: int, num_stages: int | None, objective: Objective
    ) -> tuple[Partition, ...] | None:
        if num_stages is None or not num_stages <= min(len(rooms), num_layers):
            return None
        ends = even_ends(num_layers, num_stages)
        roomiest = sorted(rooms, key=lambda room: (-room.node.memory_bytes, room.node.node_id))[:num_stages]
        in_order = sorted(roomiest, key=lambda room: room.node.node_id)
        for seated in (in_order, _largest_first(ends, roomiest)):
            ranges = zip((0, *ends[:-1]), ends, seated, strict=True)
            if all(room.holds(start, end) for start, end, room in ranges):
                return partitions(ends, seated)
        return None


def even_ends(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Where the stages end when they are as equal as can be, the first ones larger by one if need be."""
    size, extra = divmod(num_layers, num_stages)
    return tuple(accumulate([size + 1] * extra + [size] * (num_stages - extra)))


def _largest_first(ends: Sequence[int], roomiest: Sequence[SeatRoom]) -> list[SeatRoom]:
    """The stage with most bytes on the node with most memory, and so on: fits if any order does on like slots."""
    starts = (0, *ends[:-1])
    sizes = [roomiest[0].memory_bytes(start, end) for start, end in zip(starts, ends, strict=True)]
    by_size = sorted(range(len(ends)), key=lambda stage: (-sizes[stage], stage))
    seated = dict(zip(by_size, roomiest, strict=True))
    return [seated[stage] for stage in range(len(ends))]
