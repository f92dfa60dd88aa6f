"""Goes on with the seats that are left after a loss: who has the rows so far need not compute them again."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from services.coordinator.domain.lane_rules import reseated_id
from shared.domain.ids import NodeId
from shared.domain.plan import Lane, LayerRange, Partition, PartitionPlan, shows_seat

MAX_TRIES = 1_000  # whole plans looked at: enough for all of a small cluster's, and some 10 ms


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
    """The stages of `plan` on other nodes, with lane 0 where the rows are kept: its answer goes on at once, while the
    others make up for what they lack.

    `candidates`: per stage. A plan in which the auditors are blind (C2) is preferred; no node sits twice in a lane.
    None: there is none that `is_right`.
    """
    second_best: PartitionPlan | None = None
    for seats in itertools.islice(_fillings(candidates, num_lanes), MAX_TRIES):
        lanes = tuple(
            Lane(
                index,
                tuple(
                    Partition(seat.stage, node_id, seat.layers)
                    for seat, node_id in zip(plan.lanes[0].partitions, nodes, strict=True)
                ),
            )
            for index, nodes in enumerate(seats)
        )
        is_blind = shows_seat(lanes) is None
        if second_best is not None and not is_blind:
            continue
        found = replace(plan, lanes=lanes, spares=(), blind=is_blind)
        found = replace(found, plan_id=reseated_id(found))
        if is_right(found):
            if is_blind:
                return found
            second_best = found
    return second_best


def num_cold_stages(lane: Sequence[Partition], keeps_rows: Callable[[NodeId, LayerRange], bool]) -> int:
    """How many stages of a lane, from the first on, have to compute the committed rows again: up to the last one that
    does not have them, whose input comes from those before."""
    cold = [seat.stage for seat in lane if not keeps_rows(seat.node_id, seat.layers)]
    return max(cold, default=-1) + 1


def _fillings(candidates: Sequence[Sequence[Candidate]], num_lanes: int) -> Iterator[tuple[tuple[NodeId, ...], ...]]:
    """Nodes by lane, then stage, those with the most rows kept first."""
    ordered = [sorted(stage, key=lambda each: (not each.keeps_rows, not each.has_loaded)) for stage in candidates]
    warm = [[each for each in stage if each.keeps_rows] for stage in ordered]

    def lanes_from(lane: int, taken: tuple[tuple[NodeId, ...], ...]) -> Iterator[tuple[tuple[NodeId, ...], ...]]:
        if lane == num_lanes:
            yield taken
            return
        for nodes in seats_from(warm if lane == 0 else ordered, taken, ()):
            yield from lanes_from(lane + 1, (*taken, nodes))

    def seats_from(
        choices: Sequence[Sequence[Candidate]], others: tuple[tuple[NodeId, ...], ...], nodes: tuple[NodeId, ...]
    ) -> Iterator[tuple[NodeId, ...]]:
        stage = len(nodes)
        if stage == len(choices):
            yield nodes
            return
        for each in choices[stage]:
            if each.node_id not in nodes and all(other[stage] != each.node_id for other in others):
                yield from seats_from(choices, others, (*nodes, each.node_id))

    return lanes_from(0, ())
