"""What no plan can beat: lower bounds on the token time and the pace of a model on some nodes."""

from collections.abc import Sequence

from services.partitioner.domain.placement import SeatRoom
from shared.domain.plan import Objective

_HALVINGS = 60


def least_s(rooms: Sequence[SeatRoom], num_layers: int, objective: Objective) -> float:
    """Layers are taken for work that can be divided at will, and links for free.

    Latency: the fastest nodes take as much as their memory could ever hold of it. Throughput: all nodes work at once.
    A plan may be as good as this, mostly it cannot. Infinite when the memory of all nodes is too small.
    """
    total = rooms[0].step_sums[num_layers]
    ranked = sorted(((room.speed, _most_work(room, num_layers)) for room in rooms), reverse=True)
    if sum(most for _, most in ranked) < total * (1 - 1e-9):
        return float("inf")
    if objective is Objective.LATENCY:
        left, spent_s = float(total), 0.0
        for speed, most in ranked:
            taken = min(left, most)
            left -= taken
            spent_s += taken / speed
        return spent_s
    low, high = 0.0, total / min(speed for speed, _ in ranked)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if sum(min(speed * middle, most) for speed, most in ranked) < total:
            low = middle
        else:
            high = middle
    return low


def _most_work(room: SeatRoom, num_layers: int) -> float:
    """FLOPs of the layers that the node could hold, if all were those with most work per byte."""
    total = room.step_sums[num_layers]
    if room.holds(0, num_layers):
        return total
    per_byte = max(
        (
            (room.step_sums[layer + 1] - room.step_sums[layer]) / max(1, room.memory_bytes(layer, layer + 1))
            for layer in range(num_layers)
        ),
    )
    return min(float(total), per_byte * room.node.memory_bytes)
