"""A short way through the layers from node to node: where the search starts.

One label is kept for each (layer reached, node), the best found, and a node is not visited twice on a way; so this is
no proof of the shortest way, only a good one. Petals' clients find their way through its servers alike.
"""

import numpy as np

from services.partitioner.domain.strategies.pipeline import Order, Pipelines
from shared.domain.plan import Objective


def walk(pipelines: Pipelines, objective: Objective) -> Order | None:
    """The order of a good way; None when none was found."""
    size, num_layers = len(pipelines.rooms), pipelines.num_layers
    combine = np.add if objective is Objective.LATENCY else np.maximum
    steps = np.stack([pipelines.steps(index) for index in range(size)])
    latency, s_per_byte = pipelines.hops.tables()
    if objective is Objective.THROUGHPUT:
        latency = np.zeros_like(latency)
    value = np.full((num_layers + 1, size), np.inf)
    came_from = np.full((num_layers + 1, size, 2), -1)  # layer and place of the label before
    visited = np.zeros((num_layers + 1, size, size), dtype=bool)
    alone = np.eye(size, dtype=bool)
    row_bytes = (0, *pipelines.rooms[0].row_bytes)
    for start in range(num_layers):
        if start:
            sent = combine(value[start][:, None], latency + s_per_byte * row_bytes[start])
            sent[visited[start]] = np.inf
            before = sent.argmin(axis=0)
            arrived, been = sent[before, range(size)], visited[start][before] | alone
        else:
            before, arrived, been = np.full(size, -1), np.zeros(size), alone
        done = combine(arrived[:, None], steps[:, start, :]).T
        is_better = done < value
        value[is_better] = done[is_better]
        ends, places = np.nonzero(is_better)
        came_from[ends, places, 0], came_from[ends, places, 1] = start, before[places]
        visited[ends, places] = been[places]
    if not np.isfinite(value[num_layers]).any():
        return None
    order, end, place = list[int](), num_layers, int(value[num_layers].argmin())
    while place >= 0:
        order.append(place)
        end, place = (int(part) for part in came_from[end, place])
    return tuple(reversed(order))
