"""A short way through the layers from node to node: where the search starts.

One label is kept for each (layer reached, node), the best found, and a node is not visited twice on a way; so this is
no proof of the shortest way, only a good one. Petals' clients find their way through its servers alike. Of deep models
not every layer is tried as the start of a stage: who asks for an order cuts it anew.
"""

from collections.abc import Callable, Sequence
from operator import add
from typing import NamedTuple

from services.partitioner.domain.strategies.one_stage import INFINITE
from services.partitioner.domain.strategies.pipeline import Order, Pipelines
from shared.domain.plan import Objective

_MAX_STARTS = 64
"""Layers at which a stage may start."""


class _Left(NamedTuple):
    """The best way to have left a node at a layer."""

    seconds: float
    place: int
    visited: int
    """Nodes on it, as bits."""


class _Came(NamedTuple):
    """The best way to have come to a node at a layer."""

    seconds: float
    sender: int | None
    """None: from nowhere. It is the first node, or there is no way to it."""
    visited: int


_NO_WAY = _Came(INFINITE, None, 0)


def walk(pipelines: Pipelines, objective: Objective) -> Order | None:
    """The order of a good way; None when none was found."""
    places = range(len(pipelines.rooms))
    ways_in = [_WayIn(pipelines, place, objective) for place in places]
    stages = [pipelines.stage(place, objective) for place in places]
    stride = -(-pipelines.num_layers // _MAX_STARTS)
    came, starts, left = [[_Came(0.0, None, 0) for _ in places]], list[list[int]](), list[_Left]()
    for layer, size in enumerate(pipelines.row_bytes[:-1]):
        if layer:
            came.append([_NO_WAY if layer % stride else way_in.best(left, size) for way_in in ways_in])
        ways = [stage.send(way.seconds) for stage, way in zip(stages, came[layer], strict=True)]
        starts.append([start for _, start in ways])
        if (layer + 1) % stride and layer + 1 < pipelines.num_layers:
            continue  # no stage starts after it
        left = sorted(
            _Left(seconds, place, came[start][place].visited | 1 << place)
            for place, (seconds, start) in enumerate(ways)
            if seconds < INFINITE
        )
    if not left:
        return None
    order, layer = list[int](), pipelines.num_layers
    place: int | None = left[0].place
    while place is not None:
        order.append(place)
        layer = starts[layer - 1][place]
        place = came[layer][place].sender
    return tuple(reversed(order))


class _WayIn:
    """From which node to come to one of them."""

    def __init__(self, pipelines: Pipelines, place: int, objective: Objective) -> None:
        hops = [pipelines.hops.between(sender, place) for sender in range(len(pipelines.rooms))]
        self._place = place
        self._combine: Callable[[float, float], float] = add if objective is Objective.LATENCY else max
        self._cost_of = [hop.total_s if objective is Objective.LATENCY else hop.transfer_s for hop in hops]
        self._costs: dict[int, tuple[list[float], float]] = {}
        """By size of a row: seconds from each node, and the least from another one."""

    def best(self, left: Sequence[_Left], size: int) -> _Came:
        """`left`: the quickest first; `size`: bytes of the row that is sent."""
        costs, least = self._costs_of(size)
        combine, bit = self._combine, 1 << self._place
        best = _NO_WAY
        for seconds, sender, visited in left:
            if combine(seconds, least) >= best.seconds:
                break
            if not visited & bit:
                came = combine(seconds, costs[sender])
                if came < best.seconds:
                    best = _Came(came, sender, visited)
        return best

    def _costs_of(self, size: int) -> tuple[list[float], float]:
        if size not in self._costs:
            costs = [cost(size) for cost in self._cost_of]
            others = costs[: self._place] + costs[self._place + 1 :]
            self._costs[size] = costs, min(others, default=0.0)
        return self._costs[size]
