"""The best nodes, order and cut: by trying every choice, or by search where there are too many."""

from services.partitioner.domain.strategies.every_choice import EveryChoice, is_small
from services.partitioner.domain.strategies.parametric import balanced
from services.partitioner.domain.strategies.pipeline import Cut, Order, Pipelines
from services.partitioner.domain.strategies.search import Search
from shared.domain.plan import Objective


def best_cut(pipelines: Pipelines, num_stages: int | None, objective: Objective) -> Cut | None:
    """The optimum for small clusters, the best that a search finds beyond; None when nothing fits."""
    rooms = pipelines.rooms
    if is_small(len(rooms), pipelines.num_layers):
        cuts = EveryChoice(pipelines, objective).cuts(num_stages)
        return min(cuts, key=lambda cut: (*cut.value(objective), cut.order), default=None)
    places = {room.node.node_id: index for index, room in enumerate(rooms)}

    def order_of(count: int) -> Order | None:
        seats = balanced(rooms, pipelines.num_layers, count)
        return None if seats is None else tuple(places[seat.node_id] for seat in seats)

    return Search(pipelines, objective, order_of).best(num_stages)
