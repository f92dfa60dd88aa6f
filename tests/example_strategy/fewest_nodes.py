"""An example of a strategy: as few nodes as can hold the model, the roomiest first. Fewer hops, fewer nodes to fail."""

from collections.abc import Sequence

from services.partitioner.domain.placement import SeatRoom
from services.partitioner.domain.strategies.base import Strategy, partitions
from shared.domain.plan import Objective, Partition


class FewestNodes(Strategy):
    name = "fewest_nodes"
    chooses_stages = True

    def seat(
        self, rooms: Sequence[SeatRoom], num_layers: int, num_stages: int | None, objective: Objective
    ) -> tuple[Partition, ...] | None:
        """Every node takes all that it can hold, but leaves a layer for each stage that is still wanted."""
        roomiest = sorted(rooms, key=lambda room: (-room.node.memory_bytes, room.node.node_id))
        ends: list[int] = []
        for room in roomiest[:num_stages]:
            start = ends[-1] if ends else 0
            still_wanted = 0 if num_stages is None else num_stages - len(ends) - 1
            fitting = [end for end in range(start + 1, num_layers - still_wanted + 1) if room.holds(start, end)]
            if not fitting:
                return None
            ends.append(fitting[-1])
            if ends[-1] == num_layers:
                break
        if not ends or ends[-1] != num_layers or num_stages not in {None, len(ends)}:
            return None
        return partitions(ends, roomiest[: len(ends)])
