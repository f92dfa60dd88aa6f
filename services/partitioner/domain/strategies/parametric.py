"""The slowest stage sets the pace: make it as fast as the nodes allow.

Which nodes, in which order, with which layers is one question. It is answered by a parametric search: for a limit on
the time of a stage, find out whether the layers can be seated at all; then lower the limit. Nodes that are equal in
all that counts are interchangeable, so they are tried as one class. While the number of ways to choose and order
classes is small, all are tried and the answer is the optimum; beyond, nodes are ranked by how many average layers they
take within the limit, which is right for equal layers and close to it otherwise.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from services.partitioner.domain.placement import SeatRoom
from services.partitioner.domain.strategies.base import partitions
from shared.domain.plan import Partition

_EXACT_WORK = 40_000
"""Layer-by-layer steps of one trial up to which all choices are tried: some milliseconds."""
_CLOSE = 1e-7
"""Limits nearer than this (relative) are the same: far below what a speed is known to."""
_DIGITS = 9
"""Of shares that are compared: rounding must not decide between equal ones."""
_MAX_TRIALS = 64
_CANDIDATES = 16
"""Rooms compared for a place, the best ranked of those not seated."""


@dataclass(frozen=True, slots=True)
class _Seating:
    ends: tuple[int, ...]
    rooms: tuple[SeatRoom, ...]

    @property
    def slowest_s(self) -> float:
        starts = (0, *self.ends[:-1])
        ranges = zip(starts, self.ends, self.rooms, strict=True)
        return max(room.step_s(start, end) for start, end, room in ranges)


def balanced(rooms: Sequence[SeatRoom], num_layers: int, num_stages: int) -> tuple[Partition, ...] | None:
    """Seats whose slowest stage is as fast as can be, hops apart; None when none fit."""
    if not num_stages <= min(len(rooms), num_layers):
        return None
    classes = _classes(rooms)
    is_small = _choices(classes, num_stages, _EXACT_WORK // (num_layers * len(classes)))
    trial = _AllChoices(classes, num_layers, num_stages) if is_small else _Ranked(rooms, num_layers, num_stages)
    best = _fastest(trial, rooms, num_stages)
    return None if best is None else partitions(best.ends, best.rooms)


class _Trial:
    def within(self, limit_s: float) -> _Seating | None:
        """Seats whose every stage takes at most `limit_s`, or None."""
        raise NotImplementedError


def _fastest(trial: _Trial, rooms: Sequence[SeatRoom], num_stages: int) -> _Seating | None:
    best = trial.within(float("inf"))
    if best is None:
        return None
    # No cut is faster than all work spread without rest over the fastest nodes.
    speeds = sorted((room.speed for room in rooms), reverse=True)[:num_stages]
    too_low_s = rooms[0].step_sums[-1] / sum(speeds) * (1 - _CLOSE)
    for _ in range(_MAX_TRIALS):
        if best.slowest_s <= too_low_s * (1 + 2 * _CLOSE):
            break
        limit_s = (too_low_s + best.slowest_s) / 2
        found = trial.within(limit_s)
        if found is None:
            too_low_s = limit_s
        else:
            best = found
    return best


def _classes(rooms: Sequence[SeatRoom]) -> list[tuple[SeatRoom, ...]]:
    """Rooms that are equal in all that counts, each class in order of node id, classes by their first node."""

    def kind(room: SeatRoom) -> tuple[int, float, int]:
        return room.node.memory_bytes, room.speed, room.node.slots * room.node.context_tokens

    ordered = sorted(rooms, key=lambda room: (kind(room), room.node.node_id))
    classes = [tuple(members) for _, members in groupby(ordered, key=kind)]
    return sorted(classes, key=lambda members: members[0].node.node_id)


def _choices(classes: Sequence[Sequence[SeatRoom]], num_stages: int, limit: int) -> bool:
    """Whether there are at most `limit` ways to take fewer than `num_stages` rooms, minding classes only."""
    ways = [1] + [0] * (num_stages - 1)
    for members in classes:
        ways = [sum(ways[max(0, taken - len(members)) : taken + 1]) for taken in range(num_stages)]
        if sum(ways) > limit:
            return False
    return True


class _AllChoices(_Trial):
    """Every choice of classes: for each, the set of layers that its stages can end at, as bits of one number."""

    def __init__(self, classes: Sequence[tuple[SeatRoom, ...]], num_layers: int, num_stages: int) -> None:
        self._classes = classes
        self._num_layers, self._num_stages = num_layers, num_stages

    def within(self, limit_s: float) -> _Seating | None:
        reaches = [[members[0].reach(layer, limit_s) for layer in range(self._num_layers)] for members in self._classes]
        stages: list[dict[tuple[int, ...], int]] = [{(0,) * len(self._classes): 1}]
        for _ in range(self._num_stages):
            stages.append(self._one_more(stages[-1], reaches))
        goal = 1 << self._num_layers
        for taken, ends in stages[-1].items():
            if ends & goal:
                return self._walk_back(stages, taken, reaches)
        return None

    def _one_more(self, stage: dict[tuple[int, ...], int], reaches: list[list[int]]) -> dict[tuple[int, ...], int]:
        after: dict[tuple[int, ...], int] = {}
        for taken, ends in stage.items():
            starts = [layer for layer in range(self._num_layers) if ends >> layer & 1]
            for index, members in enumerate(self._classes):
                if taken[index] == len(members):
                    continue
                reached = 0
                for start in starts:
                    reached |= (2 << reaches[index][start]) - (2 << start)
                if reached:
                    key = (*taken[:index], taken[index] + 1, *taken[index + 1 :])
                    after[key] = after.get(key, 0) | reached
        return after

    def _walk_back(
        self, stages: list[dict[tuple[int, ...], int]], taken: tuple[int, ...], reaches: list[list[int]]
    ) -> _Seating:
        """From the last stage to the first, each as near as it can be to an even share of what is left: the limit
        binds the slowest stage only, the others need not be uneven."""
        ends, chosen, end = [], [], self._num_layers
        for before in reversed(stages[:-1]):
            ends.append(end)
            speed = sum(count * members[0].speed for count, members in zip(taken, self._classes, strict=True))
            share_s = self._classes[0][0].step_sums[end] / speed
            ways = self._steps_to(before, taken, end, reaches)
            index, end, taken = min(ways, key=lambda way: self._unevenness(way[0], way[1], ends[-1], share_s))
            chosen.append(index)
        return _Seating(tuple(reversed(ends)), self._rooms(reversed(chosen)))

    def _unevenness(self, index: int, start: int, end: int, share_s: float) -> tuple[float, int, int]:
        """Of equal ones the smaller stage, then the later class: earlier stages get the more and the lower ids."""
        off = abs(self._classes[index][0].step_s(start, end) / share_s - 1) if share_s else 0.0
        return round(off, _DIGITS), -start, -index

    def _steps_to(
        self, before: dict[tuple[int, ...], int], taken: tuple[int, ...], end: int, reaches: list[list[int]]
    ) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Which class could have held the stage that ends here, from which layer on, after which choice."""
        for index in range(len(self._classes)):
            if not taken[index]:
                continue
            earlier = (*taken[:index], taken[index] - 1, *taken[index + 1 :])
            starts = before.get(earlier, 0)
            for start in range(end):
                if starts >> start & 1 and reaches[index][start] >= end:
                    yield index, start, earlier

    def _rooms(self, chosen: Iterator[int]) -> tuple[SeatRoom, ...]:
        """Lower node ids sit nearer to the start."""
        unused = [iter(members) for members in self._classes]
        return tuple(next(unused[index]) for index in chosen)


def undominated(memory: Sequence[float], speeds: Sequence[float], limit: int) -> list[int]:
    """Places, ascending, without those where so many others have as much memory and speed: they are never looked at."""
    before: list[float] = []  # memory of those at least as fast, ascending
    kept: list[int] = []
    for place in sorted(range(len(speeds)), key=lambda place: (-speeds[place], -memory[place])):
        if len(before) - bisect_left(before, memory[place]) < limit:
            kept.append(place)
            insort(before, memory[place])
    return sorted(kept)


class _Ranked(_Trial):
    """The nodes that take most layers within the limit; those whom the ends cost least sit at the ends."""

    def __init__(self, rooms: Sequence[SeatRoom], num_layers: int, num_stages: int) -> None:
        self._rooms = rooms
        self._num_layers, self._num_stages = num_layers, num_stages
        self._speeds = [room.speed for room in rooms]
        middle = max(1, num_layers - 2)
        first, last = (1, num_layers - 1) if num_layers > 2 else (0, num_layers)
        self._steps = max(1.0, (rooms[0].step_sums[last] - rooms[0].step_sums[first]) / middle)
        self._memory = [max(1.0, room.memory_bytes(first, last) / middle) for room in rooms]
        needs = zip(rooms, self._memory, strict=True)
        self._by_memory = [room.node.memory_bytes / layer_bytes for room, layer_bytes in needs]
        self._looked_at = num_stages + _CANDIDATES
        self._able = undominated(self._by_memory, self._speeds, self._looked_at)

    def within(self, limit_s: float) -> _Seating | None:
        ranking = self._ranking(limit_s)
        order = self._arranged(sorted(ranking[: self._num_stages]), limit_s)
        return self._seated(order, limit_s) or self._seated(self._by_reach(ranking, order[-1], limit_s), limit_s)

    def _ranking(self, limit_s: float) -> list[int]:
        """Rooms that take most layers first, then in order of place; no more of them than are looked at."""
        layers_per_speed = limit_s / self._steps
        counts = [min(self._by_memory[index], layers_per_speed * self._speeds[index]) for index in self._able]
        ranking = sorted(range(len(counts)), key=counts.__getitem__, reverse=True)
        return [self._able[place] for place in ranking[: self._looked_at]]

    def _seated(self, order: Sequence[int], limit_s: float) -> _Seating | None:
        """Each room in turn takes all it can, leaving a layer for each that follows."""
        ends, start = [], 0
        for stage, index in enumerate(order):
            end = min(self._rooms[index].reach(start, limit_s), self._num_layers - (len(order) - 1 - stage))
            if end <= start:
                return None
            ends.append(end)
            start = end
        if start < self._num_layers:
            return None
        return _Seating(tuple(ends), tuple(self._rooms[index] for index in order))

    def _by_reach(self, ranking: Sequence[int], last: int, limit_s: float) -> list[int]:
        """For uneven layers and tight memory: at each place the room that gets farthest from there."""
        unused = [index for index in ranking if index != last]
        order: list[int] = []
        start = 0
        for _ in range(self._num_stages - 1):
            reaches = [self._rooms[index].reach(start, limit_s) for index in unused[:_CANDIDATES]]
            start = min(max(reaches), self._num_layers - 1)
            order.append(unused.pop(reaches.index(max(reaches))))
        return [*order, last]

    def _layers_within(self, index: int, limit_s: float, *, memory: float = 0, steps: float = 0) -> float:
        """How many average layers a node takes beside so many other bytes."""
        room = self._rooms[index]
        by_memory = (room.node.memory_bytes - memory) / self._memory[index]
        return min(by_memory, (limit_s * room.speed - steps) / self._steps)

    def _arranged(self, chosen: list[int], limit_s: float) -> list[int]:
        def lost(index: int, layer: int) -> float:
            """Layers that a node cannot take when the given one, larger than the average, is its."""
            room = self._rooms[index]
            memory = room.memory_bytes(layer, layer + 1) - self._memory[index]
            steps = room.step_sums[layer + 1] - room.step_sums[layer] - self._steps
            beside = self._layers_within(index, limit_s, memory=memory, steps=steps)
            return self._layers_within(index, limit_s) - beside

        rest = list(chosen)
        last = min(rest, key=lambda index: lost(index, self._num_layers - 1))
        rest.remove(last)
        if not rest:
            return [last]
        first = min(rest, key=lambda index: lost(index, 0))
        rest.remove(first)
        return [first, *rest, last]
