"""The best nodes, order and cut of all there are, for clusters small enough.

A dynamic programme over sets of nodes, as Held and Karp (1962) gave for shortest tours, with the layers done so far as
one more coordinate: the best way to have done [0, end) with these nodes, given the first and the last of them. The
first matters because the last one sends the token's id back to it.
"""

from collections.abc import Iterator

import numpy as np

from services.partitioner.domain.hops import TOKEN_ID_BYTES, Seconds
from services.partitioner.domain.strategies.pipeline import CLOSE, Cut, Pipelines
from shared.domain.plan import Objective

_MAX_CELLS = 40_000_000
"""Additions of one solution: about a tenth of a second."""


def is_small(num_rooms: int, num_layers: int) -> bool:
    return num_rooms <= 16 and 2**num_rooms * num_rooms**2 * (num_layers + 1) ** 2 <= _MAX_CELLS


class EveryChoice:
    def __init__(self, pipelines: Pipelines, objective: Objective) -> None:
        self._pipelines, self._objective = pipelines, objective
        self._combine = np.add if objective is Objective.LATENCY else np.maximum
        places = range(len(pipelines.rooms))
        self._steps = np.stack([pipelines.steps(index) for index in places])
        latency, s_per_byte = pipelines.hops.tables()
        if objective is Objective.THROUGHPUT:
            latency = np.zeros_like(latency)  # a link is not taken while a row is under way
        row_bytes = np.array((0, *pipelines.rooms[0].row_bytes), dtype=np.float64)
        self._hops = latency[:, :, None] + s_per_byte[:, :, None] * row_bytes
        self._back = latency + s_per_byte * TOKEN_ID_BYTES

    def cuts(self, num_stages: int | None) -> Iterator[Cut]:
        """The best cut of each number of stages, or of the one asked for."""
        num_rooms, num_layers = len(self._pipelines.rooms), self._pipelines.num_layers
        most = min(num_rooms, num_layers) if num_stages is None else num_stages
        if most > min(num_rooms, num_layers):
            return
        ways = self._ways(most)
        for count in range(1 if num_stages is None else most, most + 1):
            best = min(
                (self._closed(ways[chosen], chosen) for chosen in ways if chosen.bit_count() == count),
                default=None,
            )
            if best is None or not np.isfinite(best[0]):
                continue
            value, chosen, first, last = best
            order = self._walk_back(ways, chosen, first, last)
            is_latency = self._objective is Objective.LATENCY
            cut = self._pipelines.quickest(order, np.inf if is_latency else value * (1 + CLOSE))
            if cut is not None:
                yield cut

    def _ways(self, most: int) -> dict[int, Seconds]:
        """By set of nodes (as bits): [first, last, end]."""
        num_rooms, ends = len(self._pipelines.rooms), self._steps.shape[1]
        ways: dict[int, Seconds] = {}
        for index in range(num_rooms):
            ways[1 << index] = np.full((num_rooms, num_rooms, ends), np.inf)
            ways[1 << index][index, index] = self._steps[index, 0]
        for chosen in range(1, 1 << num_rooms):
            if chosen.bit_count() >= most:
                continue
            after = [index for index in range(num_rooms) if not chosen >> index & 1]
            firsts = [index for index in range(num_rooms) if chosen >> index & 1]
            here = ways[chosen][firsts][:, firsts]
            hops = self._hops[firsts][:, after]
            arrived = self._combine(here[:, :, None, :], hops[None]).min(axis=1)
            done = self._combine(arrived[:, :, :, None], self._steps[after][None]).min(axis=2)
            for place, index in enumerate(after):
                more = chosen | 1 << index
                if more not in ways:
                    ways[more] = np.full((num_rooms, num_rooms, ends), np.inf)
                ways[more][firsts, index] = done[:, place]
        return ways

    def _closed(self, ways: Seconds, chosen: int) -> tuple[float, int, int, int]:
        """Value, nodes, first, last: of the best ring of these nodes."""
        whole = ways[:, :, -1]
        rings = self._combine(whole, self._back.T) if chosen.bit_count() > 1 else whole
        first, last = divmod(int(rings.argmin()), rings.shape[1])
        return float(rings[first, last]), chosen, first, last

    def _walk_back(self, ways: dict[int, Seconds], chosen: int, first: int, last: int) -> tuple[int, ...]:
        order, end = [last], self._pipelines.num_layers
        while chosen.bit_count() > 1:
            chosen ^= 1 << last
            arrived = self._combine(ways[chosen][first], self._hops[:, last])
            total = self._combine(arrived, self._steps[last][:, end])
            last, end = divmod(int(total.argmin()), total.shape[1])
            order.append(last)
        return tuple(reversed(order))
