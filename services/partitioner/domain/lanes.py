"""Seats for several lanes over one cut: a depth-first search that takes the least busy node first.

Stage by stage, and within a stage lane by lane, each seat goes to the node that would have the least to compute with
it. The rules (C1, C2, C4 of verification.md section 4, a lane's seats on different nodes, memory for all stages of a
node, pairs kept apart) are checked as seats are given, and a dead end is left by the last choice. The search is
complete for small clusters; beyond, it looks at the best nodes of each stage only and gives up after a bounded number
of tries.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from services.partitioner.domain.placement import SeatRoom
from shared.domain.ids import NodeId
from shared.domain.plan import Lane, LayerRange, Partition, Seating, failure_domain

MAX_TRIES = 20_000
"""Seats tried before the search gives up: about a tenth of a second."""
_MIN_CANDIDATES = 32
_MAX_CANDIDATES = 256
"""Nodes looked at per stage."""

_Place = tuple[int, int]
"""(lane, stage)"""


def seat_lanes(
    layers: Sequence[LayerRange],
    rooms: Sequence[SeatRoom],
    seating: Seating,
    *,
    fixed: Sequence[Lane],
    blind: bool,
    spread_by: str,
) -> tuple[Lane, ...] | None:
    """`seating.num_lanes` lanes over the stages `layers`, the first of them `fixed`; None when none were found.

    `blind`: keep C2, for all lanes but a referee's. Where lane 0 is fixed and takes every node, rotations of it are
    tried first: they load all nodes alike.
    """
    return _Search(layers, rooms, seating, fixed=fixed, blind=blind, spread_by=spread_by).run()


class _Search:
    def __init__(
        self,
        layers: Sequence[LayerRange],
        rooms: Sequence[SeatRoom],
        seating: Seating,
        *,
        fixed: Sequence[Lane],
        blind: bool,
        spread_by: str,
    ) -> None:
        self._layers, self._rooms, self._fixed = layers, rooms, fixed
        self._num_lanes, self._num_kept = seating.num_lanes, len(seating.keep)
        self._num_blind = (self._num_lanes - seating.with_referee) if blind else 0
        self._domains = [failure_domain(room.node, spread_by) for room in rooms]
        self._excluded = frozenset(seating.excluded)
        self._apart = frozenset(pair for a, b in seating.apart for pair in ((a, b), (b, a)))
        self._index = {room.node.node_id: index for index, room in enumerate(rooms)}
        self._referees = frozenset(seating.referees)
        self._disputed = (self._num_lanes - 1 if seating.with_referee else None, seating.disputed_stage)
        self._seats: dict[_Place, int] = {}
        self._held_bytes: Counter[int] = Counter()
        self._busy_s: defaultdict[int, float] = defaultdict(float)
        self._candidates: list[list[int]] = []
        for lane in fixed:
            for seat in lane.partitions:
                self._load(self._index[seat.node_id], seat.stage, 1)

    def run(self) -> tuple[Lane, ...] | None:
        if self._num_lanes > len(self._fixed):
            by_speed = sorted(range(len(self._rooms)), key=lambda index: (-self._rooms[index].speed, index))
            for stage in range(len(self._layers)):
                found = self._of_stage(stage, by_speed)
                if not self._are_enough(found):
                    return None
                self._candidates.append(found)
        if not self._fill([(lane, stage) for stage in range(len(self._layers)) for lane in range(self._num_lanes)]):
            return None
        return tuple(Lane(lane, self._partitions(lane)) for lane in range(self._num_lanes))

    def _partitions(self, lane: int) -> tuple[Partition, ...]:
        return tuple(
            Partition(stage, self._rooms[self._seats[lane, stage]].node.node_id, layers)
            for stage, layers in enumerate(self._layers)
        )

    # --- whom to look at

    def _of_stage(self, stage: int, by_speed: Sequence[int]) -> list[int]:
        """Nodes that hold the stage alone: of each failure domain the fastest first, then the second of each..."""
        layers = self._layers[stage]
        limit = min(_MAX_CANDIDATES, max(_MIN_CANDIDATES, 2 * self._num_lanes * len(self._layers)))
        seen: Counter[tuple[tuple[str, str], tuple[str, str]]] = Counter()
        ranked: list[tuple[int, int, int]] = []
        for index in by_speed:
            room = self._rooms[index]
            if not room.holds(layers.start, layers.end) or (stage, room.node.node_id) in self._excluded:
                continue
            kind = room.node.kind, self._domains[index]
            ranked.append((seen[kind], len(ranked), index))
            seen[kind] += 1
            if len(seen) == limit:  # as many are first of their domain: no other comes before them
                break
        return [index for _, _, index in sorted(ranked)[:limit]]

    def _are_enough(self, candidates: Sequence[int]) -> bool:
        """Whether any kind has as many failure domains as there are lanes."""
        domains: defaultdict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
        for index in candidates:
            domains[self._rooms[index].node.kind].add(self._domains[index])
        most = max((len(found) for found in domains.values()), default=0)
        return most >= self._num_lanes - len(self._fixed)

    def _choices(self, place: _Place) -> Iterator[int]:
        """Nodes for this seat that break no rule, best first. Lazy: rules are checked when a node's turn comes."""
        lane, stage = place
        if lane < len(self._fixed):
            chosen = [self._index[self._fixed[lane].partitions[stage].node_id]]
        else:
            guess = self._rotated(lane, stage)
            chosen = sorted(
                self._candidates[stage],
                key=lambda index: (self._rank(index, place), index != guess, *self._merit(index, stage)),
            )
        return (index for index in chosen if self._fits(index, lane, stage))

    def _rank(self, index: int, place: _Place) -> int:
        """Whom the operator trusts comes first where a dispute is settled, and last elsewhere in that lane."""
        if place[0] != self._disputed[0] or self._rooms[index].node.node_id not in self._referees:
            return 1
        return 0 if place == self._disputed else 2

    def _rotated(self, lane: int, stage: int) -> int | None:
        if not self._fixed or len(self._layers) != len(self._rooms):
            return None
        return self._index[self._fixed[0].partitions[(stage - lane) % len(self._layers)].node_id]

    def _merit(self, index: int, stage: int) -> tuple[float, float, int]:
        """Less is better: time to compute all its seats, share of memory taken, place in the list."""
        room, layers = self._rooms[index], self._layers[stage]
        busy_s = self._busy_s[index] + room.step_s(layers.start, layers.end)
        taken = self._held_bytes[index] + room.memory_bytes(layers.start, layers.end)
        return busy_s, taken / max(1, room.node.memory_bytes), index

    # --- rules

    def _fits(self, index: int, lane: int, stage: int) -> bool:
        room, layers = self._rooms[index], self._layers[stage]
        is_kept = lane < self._num_kept
        if not is_kept and (stage, room.node.node_id) in self._excluded:
            return False
        own_bytes = 0 if lane < len(self._fixed) else room.memory_bytes(layers.start, layers.end)
        if self._held_bytes[index] + own_bytes > room.node.memory_bytes:
            return False
        return (
            all(self._seats[lane, earlier] != index for earlier in range(stage))
            and self._is_distinct(index, lane, stage)
            and self._is_alike(index)
            and self._is_blind(index, lane, stage)
            and (is_kept or all(not self._are_apart(index, other) for other in self._neighbours(lane, stage)))
        )

    def _is_distinct(self, index: int, lane: int, stage: int) -> bool:
        """C1. Seats of a stage are given in order of lanes."""
        return all(self._domains[index] != self._domains[self._seats[other, stage]] for other in range(lane))

    def _is_alike(self, index: int) -> bool:
        """C4, where lanes are compared: as the first seat that was given."""
        first = next(iter(self._seats.values()), index)
        return self._num_lanes == 1 or self._rooms[index].node.kind == self._rooms[first].node.kind

    def _is_blind(self, index: int, lane: int, stage: int) -> bool:
        """C2, towards the stage before."""
        if stage == 0 or lane >= self._num_blind:
            return True
        return all(self._seats[auditor, stage - 1] != index for auditor in range(1, self._num_blind) if auditor != lane)

    def _neighbours(self, lane: int, stage: int) -> Iterator[int]:
        if stage > 0:
            yield self._seats[lane, stage - 1]
            if stage == len(self._layers) - 1:
                yield self._seats[lane, 0]

    def _are_apart(self, index: int, other: int) -> bool:
        return (self._rooms[index].node.node_id, self._rooms[other].node.node_id) in self._apart

    # --- the search

    def _fill(self, places: Sequence[_Place]) -> bool:
        """Give every place a seat. A loop with a stack of its own: there may be thousands of seats."""
        trail = [self._choices(places[0])]
        for _ in range(max(MAX_TRIES, 2 * len(places))):
            place = places[len(trail) - 1]
            self._take_back(place)
            index = next(trail[-1], None)
            if index is None:
                trail.pop()
                if not trail:
                    return False
                continue
            self._give(place, index)
            if len(trail) == len(places):
                return True
            trail.append(self._choices(places[len(trail)]))
        return False

    def _give(self, place: _Place, index: int) -> None:
        self._seats[place] = index
        if place[0] >= len(self._fixed):  # a fixed lane's load counts from the start
            self._load(index, place[1], 1)

    def _take_back(self, place: _Place) -> None:
        index = self._seats.pop(place, None)
        if index is not None and place[0] >= len(self._fixed):
            self._load(index, place[1], -1)

    def _load(self, index: int, stage: int, sign: int) -> None:
        layers, room = self._layers[stage], self._rooms[index]
        self._held_bytes[index] += sign * room.memory_bytes(layers.start, layers.end)
        self._busy_s[index] += sign * room.step_s(layers.start, layers.end)


def free_memory(room: SeatRoom, seats: Sequence[Partition]) -> int:
    """Bytes that the node has left beside its seats."""
    own = {seat.layers for seat in seats if seat.node_id == room.node.node_id}
    return room.node.memory_bytes - sum(room.memory_bytes(layers.start, layers.end) for layers in own)


def seated_at(lanes: Sequence[Lane], stage: int) -> frozenset[NodeId]:
    return frozenset(lane.partitions[stage].node_id for lane in lanes)
