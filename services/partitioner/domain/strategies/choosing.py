"""The best nodes, order and cut: by trying every choice, or by search where there are too many."""

from collections.abc import Sequence
from itertools import chain

from services.partitioner.domain.hops import Hops
from services.partitioner.domain.placement import SeatRoom
from services.partitioner.domain.strategies.base import partitions
from services.partitioner.domain.strategies.every_choice import EveryChoice, is_small
from services.partitioner.domain.strategies.parametric import balanced
from services.partitioner.domain.strategies.pipeline import Cut, Order, Pipelines
from services.partitioner.domain.strategies.search import MAX_FREE_STAGES, Search
from shared.domain.plan import Objective, Partition

MAX_POOL = 64
"""Nodes that a search is made among."""


def best_seats(
    rooms: Sequence[SeatRoom],
    num_layers: int,
    num_stages: int | None,
    objective: Objective,
    *,
    hops: type[Hops] = Hops,
) -> tuple[Partition, ...] | None:
    """The optimum for small clusters, the best that a search finds beyond; None when nothing fits or is found."""
    if num_stages is not None and not num_stages <= min(len(rooms), num_layers):
        return None
    pool = rooms if len(rooms) <= MAX_POOL else _pool(rooms, num_layers, num_stages)
    cut = best_cut(Pipelines(pool, num_layers, hops(pool)), num_stages, objective)
    return None if cut is None else partitions(cut.ends, [pool[index] for index in cut.order])


def best_cut(pipelines: Pipelines, num_stages: int | None, objective: Objective) -> Cut | None:
    if is_small(len(pipelines.rooms), pipelines.num_layers):
        return EveryChoice(pipelines, objective).best(num_stages)
    return searched_cut(pipelines, num_stages, objective)


def searched_cut(pipelines: Pipelines, num_stages: int | None, objective: Objective) -> Cut | None:
    rooms = pipelines.rooms
    places = {room.node.node_id: index for index, room in enumerate(rooms)}

    def balanced_order(count: int) -> Order | None:
        seats = balanced(rooms, pipelines.num_layers, count)
        return None if seats is None else tuple(places[seat.node_id] for seat in seats)

    return Search(pipelines, objective, balanced_order).best(num_stages)


def _pool(rooms: Sequence[SeatRoom], num_layers: int, num_stages: int | None) -> list[SeatRoom]:
    """Those who share the load best hops apart, then the fastest and the roomiest in turn."""
    count = num_stages or min(len(rooms), num_layers, MAX_FREE_STAGES) // 2
    wanted = {seat.node_id for seat in balanced(rooms, num_layers, max(1, count)) or ()}
    places = range(len(rooms))
    first = [index for index in places if rooms[index].node.node_id in wanted]
    fastest = sorted(places, key=lambda index: (-rooms[index].speed, index))[:MAX_POOL]
    roomiest = sorted(places, key=lambda index: (-rooms[index].node.memory_bytes, index))[:MAX_POOL]
    ranked = dict.fromkeys(chain(first, *zip(fastest, roomiest, strict=True)))
    return [rooms[index] for index in sorted(list(ranked)[: max(MAX_POOL, len(first))])]
