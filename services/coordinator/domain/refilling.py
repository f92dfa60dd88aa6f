"""Goes on with the seats that are left after a loss: who has the rows so far need not compute them again."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from services.coordinator.domain.lane_rules import reseated_id
from shared.domain.ids import NodeId
from shared.domain.plan import Lane, Partition, PartitionPlan, shows_seat

MAX_TRIES = 1_000  # whole plans looked at: all of them in a small cluster, and some 10 ms

Nodes = tuple[NodeId, ...]
"""Of one lane, by stage."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that could sit at a stage."""

    node_id: NodeId
    keeps_rows: bool
    """It has computed the committed rows there, as enough others did."""
    has_loaded: bool


def refill(
    plan: PartitionPlan,
    candidates: Sequence[Sequence[Candidate]],
    *,
    num_lanes: int,
    is_right: Callable[[PartitionPlan], bool],
) -> PartitionPlan | None:
    """The stages of `plan` on the nodes with which the answer goes on soonest, in lanes where no node sits twice.

    Best are blind auditors (C2), then stages that are loaded, then few seats that compute the committed rows again, on
    different nodes, and those of lane 0 least of all. `candidates`: per stage. None: no plan that `is_right` saves
    anything.
    """
    known = [{each.node_id: each for each in stage} for stage in candidates]
    best, least = None, (True, len(plan.seats) + 1, 0, 0, 0)
    for seats in itertools.islice(_fillings(candidates, num_lanes), MAX_TRIES):
        lanes = tuple(_lane(plan, index, nodes) for index, nodes in enumerate(seats))
        placed = [[known[stage][node_id] for stage, node_id in enumerate(nodes)] for nodes in seats]
        cold = [[each.node_id for each in lane if not each.keeps_rows] for lane in placed]
        num_cold = sum(map(len, cold))
        most_on_a_node = max(Counter(itertools.chain(*cold)).values(), default=0)
        loads = sum(not each.has_loaded for lane in placed for each in lane)
        cost = (shows_seat(lanes) is not None, loads, num_cold, most_on_a_node, len(cold[0]))
        if cost < least and num_cold < num_lanes * len(candidates):
            found = replace(plan, lanes=lanes, spares=(), blind=not cost[0])
            if is_right(found):
                best, least = found, cost
    return best and replace(best, plan_id=reseated_id(best))


def num_replaying(keeps_rows: Sequence[bool]) -> int:
    """By how many stages of a lane, from the first on, the committed rows go once more: up to the last one that does
    not have them. Those before it that have them pass on what they kept."""
    return max((stage for stage, keeps in enumerate(keeps_rows, 1) if not keeps), default=0)


def _lane(plan: PartitionPlan, index: int, nodes: Nodes) -> Lane:
    seats = zip(plan.lanes[0].partitions, nodes, strict=True)
    return Lane(index, tuple(Partition(seat.stage, node_id, seat.layers) for seat, node_id in seats))


def _fillings(candidates: Sequence[Sequence[Candidate]], num_lanes: int) -> Iterator[tuple[Nodes, ...]]:
    """Every choice of nodes, by lane, then stage, in which none is twice at a stage or in a lane; likely ones first."""
    ordered = [sorted(stage, key=lambda each: (not each.has_loaded, not each.keeps_rows)) for stage in candidates]

    def lanes_from(taken: tuple[Nodes, ...]) -> Iterator[tuple[Nodes, ...]]:
        if len(taken) == num_lanes:
            yield taken
            return
        for nodes in nodes_from(taken, ()):
            yield from lanes_from((*taken, nodes))

    def nodes_from(others: tuple[Nodes, ...], nodes: Nodes) -> Iterator[Nodes]:
        stage = len(nodes)
        if stage == len(ordered):
            yield nodes
            return
        for each in ordered[stage]:
            if each.node_id not in nodes and all(other[stage] != each.node_id for other in others):
                yield from nodes_from(others, (*nodes, each.node_id))

    return lanes_from(())
