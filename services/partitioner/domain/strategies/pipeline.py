"""Nodes in a given order: what a cut costs, and the best one.

A cut is where each stage ends. Its *token time* is that of one token around the ring, all stages and hops; its *pace*
is that of the slowest stage or transfer. Latency asks for the least token time, throughput for the least pace, and
among cuts of equal pace for the least token time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from services.partitioner.domain.hops import TOKEN_ID_BYTES, Hop, Hops
from services.partitioner.domain.placement import SeatRoom
from services.partitioner.domain.strategies.one_stage import INFINITE, NO_WAY, Stage, Way, first_starts, one_stage
from shared.domain.plan import Objective

CLOSE = 1e-9
"""Times nearer than this (relative) are the same."""
_MAX_HALVINGS = 48

Order = tuple[int, ...]
"""Rooms by place, stage by stage."""


@dataclass(frozen=True, slots=True)
class Cut:
    order: Order
    ends: tuple[int, ...]
    token_s: float
    pace_s: float

    def value(self, objective: Objective) -> tuple[float, float]:
        """Less is better."""
        if objective is Objective.LATENCY:
            return self.token_s, self.pace_s
        return self.pace_s, self.token_s


class Pipelines:
    """Cuts of one model over some rooms. Keeps what it computes of each room: make one per question."""

    def __init__(self, rooms: Sequence[SeatRoom], num_layers: int, hops: Hops) -> None:
        self.rooms, self.num_layers, self.hops = rooms, num_layers, hops
        self.row_bytes = (0, *rooms[0].row_bytes)
        """Of the hidden state at each layer."""
        self._most_bytes = max(rooms[0].row_bytes)
        self._starts: dict[int, list[int]] = {}
        self._done_s: dict[int, list[float]] = {}

    def best(self, order: Order, objective: Objective) -> Cut | None:
        """The best cut in which every room holds at least one layer; None when none fits.

        For throughput, of those that `within` finds.
        """
        if objective is Objective.LATENCY:
            return self.quickest(order)
        widest = self.within(order, float("inf")) or self.quickest(order)
        return None if widest is None else self._evened(widest)

    def rated(self, order: Order, ends: tuple[int, ...]) -> Cut:
        starts = (0, *ends[:-1])
        seated = zip(order, starts, ends, strict=True)
        steps = [self.rooms[index].step_s(start, end) for index, start, end in seated]
        hops = self._hops_of(order, ends)
        return Cut(
            order,
            ends,
            token_s=sum(steps) + sum(hop.total_s(size) for hop, size in hops),
            pace_s=max(*steps, *(hop.transfer_s(size) for hop, size in hops), 0.0),
        )

    def within(self, order: Order, limit_s: float) -> Cut | None:
        """A cut whose pace is at most `limit_s`: each room in turn takes all it can, a layer left for each to come.

        None when that does not work out. Then there is none, unless a room came to a layer too large for it alone.
        """
        ends, start, left = [], 0, len(order)
        for place, index in enumerate(order, 1):
            left -= 1
            end = min(self.rooms[index].reach(start, limit_s), self.num_layers - left)
            if left:
                end = self._sendable(end, self.hops.between(index, order[place]).s_per_byte, limit_s)
            if end <= start:
                return None
            ends.append(end)
            start = end
        if start < self.num_layers or self._back_s(order) > limit_s:
            return None
        return self.rated(order, tuple(ends))

    def quickest(self, order: Order, pace_s: float = INFINITE) -> Cut | None:
        """The cut of least token time with a pace of at most `pace_s`: a shortest path over the layers."""
        ways = self.through(order[0], self.nothing_done, Objective.LATENCY, pace_s)
        starts = [[start for _, start in ways]]
        for sender, receiver in pairwise(order):
            arrived = self._sent([seconds for seconds, _ in ways], self.hops.between(sender, receiver), pace_s)
            ways = self.through(receiver, arrived, Objective.LATENCY, pace_s)
            starts.append([start for _, start in ways])
        if ways[-1][0] == INFINITE:
            return None
        ends = [self.num_layers]
        for before in reversed(starts[1:]):
            ends.append(before[ends[-1]])
        found = self.rated(order, tuple(reversed(ends)))
        return found if found.pace_s <= pace_s else None

    @property
    def nothing_done(self) -> list[float]:
        """When a row is at each layer before any stage."""
        return [0.0] + [INFINITE] * self.num_layers

    def through(
        self, index: int, arrived: Sequence[float], objective: Objective, pace_s: float = INFINITE
    ) -> list[Way]:
        """The best way to each layer with a last stage in this room, of at most `pace_s`; `arrived`: at each layer."""
        return [NO_WAY, *map(self.stage(index, objective, pace_s=pace_s).send, arrived[:-1])]

    def stage(self, index: int, objective: Objective, *, first: int = 0, pace_s: float = INFINITE) -> Stage:
        """In this room, of at most `pace_s`; to be told of layer `first` first."""
        if index not in self._starts:
            room = self.rooms[index]
            self._starts[index] = first_starts(room)
            self._done_s[index] = [flops / room.speed for flops in room.step_sums]
        starts = self._starts[index] if pace_s == INFINITE else first_starts(self.rooms[index], pace_s)
        return one_stage(self._done_s[index], starts, objective, first)

    def _sent(self, done: Sequence[float], hop: Hop, pace_s: float) -> list[float]:
        """When a row that has left a stage at each layer is at the next room; never where sending it takes too long."""
        ways = zip(done, self.row_bytes, strict=True)
        if self._most_bytes * hop.s_per_byte <= pace_s:
            return [left_s + hop.total_s(size) for left_s, size in ways]
        return [left_s + hop.total_s(size) if hop.transfer_s(size) <= pace_s else INFINITE for left_s, size in ways]

    def _evened(self, found: Cut) -> Cut:
        """Halve the distance between what is reached and what cannot be, then take the least token time."""
        speed = sum(self.rooms[index].speed for index in found.order)
        too_low_s = self.rooms[0].step_sums[-1] / speed * (1 - CLOSE)
        for _ in range(_MAX_HALVINGS):
            if found.pace_s <= too_low_s * (1 + 2 * CLOSE):
                break
            limit_s = (too_low_s + found.pace_s) / 2
            closer = self.within(found.order, limit_s)
            if closer is None:
                too_low_s = limit_s
            else:
                found = closer
        return self.quickest(found.order, found.pace_s) or found

    def _sendable(self, end: int, s_per_byte: float, limit_s: float) -> int:
        """The last layer up to `end` after which a row may be sent within the limit; 0 when there is none."""
        if self._most_bytes * s_per_byte <= limit_s:
            return end
        row_bytes = self.rooms[0].row_bytes
        while end > 0 and row_bytes[end - 1] * s_per_byte > limit_s:
            end -= 1
        return end

    def _back_s(self, order: Order) -> float:
        return self.hops.between(order[-1], order[0]).transfer_s(TOKEN_ID_BYTES)

    def _hops_of(self, order: Order, ends: Sequence[int]) -> list[tuple[Hop, int]]:
        if len(order) == 1:
            return []
        row_bytes = self.rooms[0].row_bytes
        ways = zip(pairwise(order), ends[:-1], strict=True)
        hops = [(self.hops.between(one, other), row_bytes[end - 1]) for (one, other), end in ways]
        return [*hops, (self.hops.between(order[-1], order[0]), TOKEN_ID_BYTES)]
