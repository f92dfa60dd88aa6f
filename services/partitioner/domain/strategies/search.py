"""Good nodes, order and cut for clusters too large to try every choice: starts, then small changes while they help.

Starts are the orders that others use, by memory, by speed, by id and balanced by load, and a good way from node to
node. A change swaps two stages, reverses a run of them, or puts another node in, beside or out. Each order
gets its best cut. How far from the optimum the result stays is measured (`make bench-placement`), not bounded.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

from services.partitioner.domain.strategies.pipeline import Cut, Order, Pipelines
from services.partitioner.domain.strategies.walks import walk
from shared.domain.plan import Objective

MAX_FREE_STAGES = 64
"""Where the number of stages is free: each costs a hop per token."""
_WORK = 40_000
"""Layers that changes may cost, each passed once per stage: some hundredths of a second."""
_WORK_PER_STAGE = 16
"""What a stage costs beside its layers, in layers."""
_NUM_IMPROVED = 3
"""Starts that are changed, the best ones."""
_HELPS = 1 - 1e-6

Balanced = Callable[[int], Order | None]
"""The order in which nodes of different speed share the load best, hops apart, for a number of stages."""


class Search:
    def __init__(self, pipelines: Pipelines, objective: Objective, balanced: Balanced) -> None:
        self._pipelines, self._objective, self._balanced = pipelines, objective, balanced
        self._rooms, self._num_layers = pipelines.rooms, pipelines.num_layers
        self._work_left = _WORK

    def best(self, num_stages: int | None) -> Cut | None:
        """None when nothing fits, or nothing was found that does."""
        found: dict[Order, Cut] = {}
        for order in self._starts(num_stages):
            cut = None if order in found else self._pipelines.best(order, self._objective)
            if cut is not None:
                found[order] = cut
            self._work_left -= self._cost(order)
            if self._work_left < _WORK // 2 and found:
                break
        ranked = sorted(found.values(), key=self._value)[:_NUM_IMPROVED]
        if not ranked:
            return None
        share = self._work_left // len(ranked)
        return min((self._improved(cut, share, is_free=num_stages is None) for cut in ranked), key=self._value)

    def _value(self, cut: Cut) -> tuple[float, float, Order]:
        return *cut.value(self._objective), cut.order

    # --- where to start

    def _starts(self, num_stages: int | None) -> Iterator[Order]:
        found = walk(self._pipelines, self._objective)
        if found is not None and num_stages in {None, len(found)}:
            yield found
        places = range(len(self._rooms))
        by_speed = sorted(places, key=lambda index: (-self._rooms[index].speed, index))
        by_memory = sorted(places, key=lambda index: (-self._rooms[index].node.memory_bytes, index))
        for count in self._counts(num_stages):
            balanced = self._balanced(count)
            if balanced is not None:
                yield balanced
            for ranked in (by_speed, by_memory):
                yield tuple(ranked[:count])
                yield tuple(sorted(ranked[:count]))

    def _counts(self, num_stages: int | None) -> list[int]:
        """The likeliest first: hops cost time, and stages share the load."""
        if num_stages is not None:
            return [num_stages]
        most = min(len(self._rooms), self._num_layers, MAX_FREE_STAGES)
        doubled = [count for power in range(7) for count in (1 << power, 3 << power) if count < most]
        return sorted([*doubled, most], reverse=self._objective is Objective.THROUGHPUT)

    # --- changes

    def _improved(self, cut: Cut, work: int, *, is_free: bool) -> Cut:
        pool = range(len(self._rooms))
        is_over = False
        while not is_over:
            is_over = True
            for order in _changes(cut.order, pool, is_free=is_free):
                if len(order) > self._num_layers:
                    continue
                if work < 0:
                    return cut
                better, cost = self._better(order, cut)
                work -= cost
                if better is not None:
                    cut, is_over = better, False
                    break
        return cut

    def _better(self, order: Order, than: Cut) -> tuple[Cut | None, int]:
        """The order's best cut if it is better, and what it took to find out."""
        if self._objective is Objective.LATENCY:
            if self._at_least_s(order) > than.token_s * _HELPS:
                return None, _WORK_PER_STAGE
            cut = self._pipelines.quickest(order)
            is_better = cut is not None and cut.token_s < than.token_s * _HELPS
            return (cut if is_better else None), self._cost(order)
        if self._pipelines.within(order, than.pace_s * _HELPS) is None:
            return None, len(order) * _WORK_PER_STAGE // 4
        return self._pipelines.best(order, self._objective), self._cost(order)

    def _cost(self, order: Order) -> int:
        """Of the order's best cut: a shortest path, and for throughput some tries at the pace before."""
        tries = 1 if self._objective is Objective.LATENCY else 6
        return len(order) * (_WORK_PER_STAGE * tries + self._num_layers)

    def _at_least_s(self, order: Order) -> float:
        """All work on the fastest of these nodes, and the latency of the hops."""
        work_s = min(self._rooms[index].step_s(0, self._num_layers) for index in order)
        ring = zip(order, (*order[1:], order[0]), strict=True)
        return work_s + sum(self._pipelines.hops.between(*ends).latency_s for ends in ring)


def _changes(order: Order, pool: Sequence[int], *, is_free: bool) -> Iterator[Order]:
    """Orders one change away, the cheap kinds first."""
    unused = [index for index in pool if index not in order]
    if is_free and len(order) > 1:
        for place in range(len(order)):
            yield order[:place] + order[place + 1 :]
    for place in range(len(order)):
        for index in unused:
            yield (*order[:place], index, *order[place + 1 :])
    for one, other in combinations(range(len(order)), 2):
        swapped = list(order)
        swapped[one], swapped[other] = order[other], order[one]
        yield tuple(swapped)
        if other - one > 1:
            yield order[:one] + order[one : other + 1][::-1] + order[other + 1 :]
    if is_free:
        for place in range(len(order) + 1):
            for index in unused:
                yield (*order[:place], index, *order[place:])
