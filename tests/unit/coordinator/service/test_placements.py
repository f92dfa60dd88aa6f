"""Loading stages ahead of the first task."""

import pytest

from shared.contracts.coordinator import Place
from shared.contracts.messages import LoadStage
from shared.domain.errors import NoCapacity
from shared.domain.plan import LayerRange
from tests.fakes.identities import N1, N2, N3
from tests.fakes.partitioner import even_plan
from tests.unit.coordinator.harness import NODES, Coordinator


def loaded(coordinator: Coordinator, node: str) -> set[LayerRange]:
    orders = [order for order in coordinator.workers[node].heard(LoadStage) if isinstance(order, LoadStage)]
    assert len(orders) == len({order.stage_ref.layers for order in orders})  # none asked for twice
    return {order.stage_ref.layers for order in orders}


async def test_the_stages_of_all_lanes_are_loaded_each_once(coordinator: Coordinator) -> None:
    await coordinator.placements.place(Place(plan=even_plan(NODES, num_lanes=2)))
    first, second, third = LayerRange(0, 2), LayerRange(2, 4), LayerRange(4, 6)
    assert [loaded(coordinator, node) for node in (N1, N2, N3)] == [{first, second}, {second, third}, {third, first}]


async def test_a_plan_with_a_node_that_is_not_here_loads_nothing(coordinator: Coordinator) -> None:
    with pytest.raises(NoCapacity):
        await coordinator.placements.place(Place(plan=even_plan([N1, "n9"], num_lanes=2)))
    assert coordinator.workers[N1].heard(LoadStage) == []
