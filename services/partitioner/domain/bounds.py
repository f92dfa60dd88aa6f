"""What no plan can beat: lower bounds on the token time and the pace of a model on some nodes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.partitioner.domain.placement import SeatRoom
from shared.domain.plan import Objective

_HALVINGS = 60
_CLOSE = 1e-9


def least_s(rooms: Sequence[SeatRoom], num_layers: int, objective: Objective) -> float:
    """Layers are taken for work that can be divided at will, and links for free.

    Latency: the fastest nodes take as much as their memory could ever hold of it. Throughput: all nodes work at once.
    A plan may be as good as this, mostly it cannot. Infinite when the memory of all nodes is too small.
    """
    total = rooms[0].step_sums[num_layers]
    shares = sorted((share_of(room, num_layers) for room in rooms), reverse=True)
    if objective is Objective.LATENCY:
        return least_token_s(total, shares)
    if sum(share.most for share in shares) < total * (1 - _CLOSE):
        return float("inf")
    low, high = 0.0, total / shares[-1].speed
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if most_within(middle, shares) < total:
            low = middle
        else:
            high = middle
    return low


class Share(NamedTuple):
    """What a node can take of a model."""

    speed: float
    most: float
    """FLOPs of the layers that it could hold, if all were those with most work per byte."""


def share_of(room: SeatRoom, num_layers: int) -> Share:
    return Share(room.speed, _most_work(room, num_layers))


def least_token_s(flops: float, shares: Iterable[Share]) -> float:
    """Seconds of so much work, the fastest of the nodes (first) taking all they could; infinite: they could not."""
    left, spent_s = flops, 0.0
    for speed, most in shares:
        if left <= most:
            return spent_s + left / speed
        left -= most
        spent_s += most / speed
    return spent_s if left <= flops * _CLOSE else float("inf")


def most_within(pace_s: float, shares: Iterable[Share]) -> float:
    """FLOPs that nodes could take when none takes longer."""
    return sum(min(speed * pace_s, most) for speed, most in shares)


def _most_work(room: SeatRoom, num_layers: int) -> float:
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
