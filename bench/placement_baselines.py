"""How others place a model, written anew from their published descriptions: what `bench.placement` compares with.

Each answers with an order of nodes and a cut, or None when its way finds nothing that fits.
"""

import heapq
from collections.abc import Sequence
from itertools import accumulate, pairwise

from services.partitioner.domain.strategies.pipeline import Cut, Pipelines
from shared.domain.plan import Objective


def uniform_by_memory(pipelines: Pipelines, objective: Objective) -> Cut | None:
    """exo's ring: all nodes by falling memory, each with layers in proportion to it (exo, README of 2024: "ring memory
    weighted partitioning")."""
    rooms = pipelines.rooms
    order = sorted(range(len(rooms)), key=lambda index: (-rooms[index].node.memory_bytes, index))
    total = sum(room.node.memory_bytes for room in rooms)
    shares = accumulate(rooms[index].node.memory_bytes for index in order)
    ends = [round(share / total * pipelines.num_layers) for share in shares]
    placed = [(index, end) for index, (start, end) in zip(order, pairwise((0, *ends)), strict=True) if end > start]
    return _checked(pipelines, [index for index, _ in placed], [end for _, end in placed])


def greedy_by_throughput(pipelines: Pipelines, objective: Objective) -> Cut | None:
    """Petals: each server that joins holds the run of blocks that are served worst so far; a client takes the best way
    through them (Borzunov et al. 2023, "Petals", section 3.2 and its appendix on load balancing)."""
    spans = _spans(pipelines)
    hops, rooms = pipelines.hops, pipelines.rooms
    start: tuple[float, int, tuple[int, ...], tuple[int, ...]] = (0.0, 0, (), ())
    queue, done = [start], set[tuple[int, int]]()
    while queue:
        value, reached, order, ends = heapq.heappop(queue)
        if reached == pipelines.num_layers:
            return _checked(pipelines, order, ends)
        if order and (order[-1], reached) in done:
            continue
        done.add((order[-1] if order else -1, reached))
        for index, (first, last) in enumerate(spans):
            if not first <= reached < last or index in order:
                continue
            for end in range(reached + 1, last + 1):
                step_s = rooms[index].step_s(reached, end)
                hop = hops.between(order[-1], index) if order else hops.between(index, index)
                size = rooms[0].row_bytes[reached - 1] if reached else 0
                more = (
                    value + step_s + hop.total_s(size)
                    if objective is Objective.LATENCY
                    else max(value, step_s, hop.transfer_s(size))
                )
                heapq.heappush(queue, (more, end, (*order, index), (*ends, end)))
    return None


def _spans(pipelines: Pipelines) -> list[tuple[int, int]]:
    """[first, last) of each server, in the order they join: that of their ids."""
    rooms, num_layers = pipelines.rooms, pipelines.num_layers
    served = [0.0] * num_layers
    spans = []
    for room in rooms:
        held = [(start, room.reach(start, float("inf"))) for start in range(num_layers)]
        longest = max(end - start for start, end in held)
        able = [(start, end) for start, end in held if end - start == longest] if longest else [(0, 0)]
        start, end = min(able, key=lambda span: (sorted(served[span[0] : span[1]]), span))
        for layer in range(start, end):
            served[layer] += room.speed / longest
        spans.append((start, end))
    return spans


def pipe_dream(pipelines: Pipelines, objective: Objective) -> Cut | None:
    """PipeDream's dynamic programme for the least slowest stage or transfer, over the machines in the order they are
    given, as many of them as are best (Narayanan et al. 2019, section 3.1; without replicated stages)."""
    best: list[tuple[float, tuple[int, ...]] | None] = [(0.0, ())] + [None] * pipelines.num_layers
    whole: list[tuple[float, tuple[int, ...]]] = []
    for index, room in enumerate(pipelines.rooms[: pipelines.num_layers]):
        hop = pipelines.hops.between(max(0, index - 1), index)
        after: list[tuple[float, tuple[int, ...]] | None] = [None] * (pipelines.num_layers + 1)
        for start, before in enumerate(best):
            if before is None or start == pipelines.num_layers:
                continue
            transfer_s = hop.transfer_s(room.row_bytes[start - 1]) if start else 0.0
            for end in range(start + 1, room.reach(start, float("inf")) + 1):
                value = max(before[0], transfer_s, room.step_s(start, end))
                found = after[end]
                if found is None or value < found[0]:
                    after[end] = value, (*before[1], end)
        best = after
        last = best[pipelines.num_layers]
        if last is not None:
            whole.append(last)
    if not whole:
        return None
    ends = min(whole)[1]
    return _checked(pipelines, range(len(ends)), ends)


def _checked(pipelines: Pipelines, order: Sequence[int], ends: Sequence[int]) -> Cut | None:
    spans = zip(order, pairwise((0, *ends)), strict=True)
    if not all(pipelines.rooms[index].holds(*span) for index, span in spans):
        return None
    return pipelines.rated(tuple(order), tuple(ends))


BASELINES = {
    "uniform by memory (exo)": uniform_by_memory,
    "greedy by throughput (Petals)": greedy_by_throughput,
    "dynamic programme (PipeDream)": pipe_dream,
}
