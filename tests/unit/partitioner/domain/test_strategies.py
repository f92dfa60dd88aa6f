import math
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.partitioner.domain.placement import SeatRoom, rooms_of, sums_of
from services.partitioner.domain.strategies import StrategyRegistry
from services.partitioner.domain.strategies.base import Strategy
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from services.partitioner.domain.strategies.parametric import undominated
from services.partitioner.domain.strategies.uniform import Uniform
from shared.domain.errors import InvalidPlanInput
from shared.domain.layers import ModelInfo
from shared.domain.plan import NodeCapability, Objective, Partition
from tests.fakes.planning import node, planned_model

BOTH = [Uniform(), LoadBalanced()]
MODELS = st.builds(
    planned_model,
    st.lists(st.integers(50, 150), min_size=1, max_size=6),
    embedding_bytes=st.integers(0, 300),
    head_bytes=st.integers(0, 300),
    kv_bytes=st.integers(0, 5),
    n_vocab=st.integers(0, 20),
)
SHAPES = st.tuples(
    st.sampled_from([120, 250, 400, 1_000, 5_000]), st.sampled_from([0.5, 1.0, 1.0, 3.7]), st.sampled_from([1, 8])
)
NODES = st.lists(SHAPES, min_size=1, max_size=5).map(
    lambda shapes: tuple(node(f"n{i}", memory=m, speed=s, slots=n) for i, (m, s, n) in enumerate(shapes))
)
LIMIT = 1 + 1e-6


def seats_of(
    strategy: Strategy, model: ModelInfo, nodes: tuple[NodeCapability, ...], num_stages: int
) -> list[str] | None:
    seats = strategy.seat(rooms_of(sums_of(model), nodes), model.num_layers, num_stages, Objective.THROUGHPUT)
    return None if seats is None else [f"{seat.node_id}:{seat.layers}" for seat in seats]


def slowest_s(rooms: tuple[SeatRoom, ...], seats: tuple[Partition, ...]) -> float:
    by_id = {room.node.node_id: room for room in rooms}
    return max(by_id[seat.node_id].step_s(seat.layers.start, seat.layers.end) for seat in seats)


def best_s(rooms: tuple[SeatRoom, ...], num_layers: int, num_stages: int) -> float | None:
    """The fastest of all plans there are, None when none fits."""
    times = []
    for cuts in combinations(range(1, num_layers), num_stages - 1):
        ranges = list(zip((0, *cuts), (*cuts, num_layers), strict=True))
        for order in permutations(rooms, num_stages):
            placed = list(zip(order, ranges, strict=True))
            if all(room.holds(start, end) for room, (start, end) in placed):
                times.append(max(room.step_s(start, end) for room, (start, end) in placed))
    return min(times, default=None)


@given(model=MODELS, nodes=NODES, data=st.data())
def test_seats_hold_every_layer_once_in_order_and_within_memory(
    model: ModelInfo, nodes: tuple[NodeCapability, ...], data: st.DataObject
) -> None:
    strategy = data.draw(st.sampled_from(BOTH))
    num_stages = data.draw(st.integers(1, 6))
    rooms = rooms_of(sums_of(model), nodes)
    seats = strategy.seat(rooms, model.num_layers, num_stages, Objective.THROUGHPUT)
    if seats is None:
        return
    by_id = {room.node.node_id: room for room in rooms}
    layers = [layer for seat in seats for layer in range(seat.layers.start, seat.layers.end)]
    assert layers == list(range(model.num_layers))
    assert [seat.stage for seat in seats] == list(range(num_stages))
    assert all(len(seat.layers) >= 1 for seat in seats)
    assert len({seat.node_id for seat in seats}) == num_stages
    assert all(by_id[seat.node_id].holds(seat.layers.start, seat.layers.end) for seat in seats)
    assert strategy.seat(rooms_of(sums_of(model), nodes), model.num_layers, num_stages, Objective.THROUGHPUT) == seats


@given(model=MODELS, nodes=NODES, num_stages=st.integers(1, 4))
def test_load_balanced_is_as_fast_as_the_best_of_all_plans(
    model: ModelInfo, nodes: tuple[NodeCapability, ...], num_stages: int
) -> None:
    rooms = rooms_of(sums_of(model), nodes)
    if num_stages > min(len(nodes), model.num_layers):
        return
    best = best_s(rooms, model.num_layers, num_stages)
    seats = LoadBalanced().seat(rooms, model.num_layers, num_stages, Objective.THROUGHPUT)
    assert (seats is None) == (best is None)
    if seats is not None and best is not None:
        assert slowest_s(rooms, seats) <= best * LIMIT


@given(model=MODELS, nodes=NODES, num_stages=st.integers(1, 4), objective=st.sampled_from(Objective))
def test_load_balanced_gets_no_worse_when_a_node_is_added(
    model: ModelInfo, nodes: tuple[NodeCapability, ...], num_stages: int, objective: Objective
) -> None:
    def value(some: tuple[NodeCapability, ...]) -> float:
        rooms = rooms_of(sums_of(model), some)
        seats = LoadBalanced().seat(rooms, model.num_layers, num_stages, objective)
        by_id = {room.node.node_id: room for room in rooms}
        times = [by_id[seat.node_id].step_s(seat.layers.start, seat.layers.end) for seat in seats or ()]
        if not times:
            return math.inf
        return max(times) if objective is Objective.THROUGHPUT else sum(times)

    assert value(nodes) <= value(nodes[:-1]) * LIMIT


@pytest.mark.parametrize("strategy", BOTH, ids=lambda strategy: strategy.name)
def test_equal_nodes_share_equal_layers_in_order_of_their_ids(strategy: Strategy) -> None:
    nodes = (node("a"), node("b"), node("c"), node("d"))
    assert seats_of(strategy, planned_model(), nodes, 3) == ["a:0-2", "b:2-4", "c:4-6"]


def test_uniform_gives_one_layer_more_to_the_first_stages() -> None:
    assert seats_of(Uniform(), planned_model((100,) * 8), (node("a"), node("b"), node("c")), 3) == [
        "a:0-3",
        "b:3-6",
        "c:6-8",
    ]


def test_uniform_takes_the_nodes_with_most_memory_and_puts_the_largest_stage_on_the_largest() -> None:
    model = planned_model((100,) * 6, head_bytes=500)
    nodes = (node("a", memory=750), node("b", memory=210), node("c", memory=250), node("d", memory=240))
    assert seats_of(Uniform(), model, nodes, 3) == ["c:0-2", "d:2-4", "a:4-6"]


def test_a_node_twice_as_fast_gets_twice_the_layers() -> None:
    nodes = (node("a"), node("b", speed=2.0))
    seats = seats_of(LoadBalanced(), planned_model(), nodes, 2)
    assert seats in (["a:0-2", "b:2-6"], ["b:0-4", "a:4-6"])


def test_a_node_with_little_memory_gets_fewer_layers_or_none() -> None:
    model = planned_model()
    assert seats_of(LoadBalanced(), model, (node("a", memory=150), node("b")), 2) in (
        ["a:0-1", "b:1-6"],
        ["b:0-5", "a:5-6"],
    )
    tight = (node("a", memory=99, speed=9.0), node("b"), node("c"))
    assert seats_of(LoadBalanced(), model, tight, 2) == ["b:0-3", "c:3-6"]


def test_kv_cache_for_all_slots_counts_as_memory() -> None:
    model = planned_model(kv_bytes=2)
    rows_of_100 = (
        node("a", memory=700, slots=10, context_tokens=10),
        node("b", memory=1_300, slots=10, context_tokens=10),
    )
    assert seats_of(LoadBalanced(), model, rows_of_100, 2) in (["a:0-2", "b:2-6"], ["b:0-4", "a:4-6"])


def test_the_head_makes_the_last_stage_hold_fewer_layers() -> None:
    model = planned_model((100,) * 8, n_vocab=25)  # 2 x 8 x 25: the head works like four layers
    assert seats_of(LoadBalanced(), model, (node("a"), node("b"), node("c")), 3) == ["a:0-4", "b:4-7", "c:7-8"]


def test_the_embedding_is_memory_of_the_first_stage_but_no_work() -> None:
    model = planned_model((100,) * 4, embedding_bytes=400)
    assert seats_of(LoadBalanced(), model, (node("a", memory=250), node("b", memory=650)), 2) == ["b:0-2", "a:2-4"]


@pytest.mark.parametrize("num_stages", [3, 20])
def test_a_thousand_uneven_nodes_are_planned_close_to_the_bound(num_stages: int) -> None:
    weights = [80 + (index * 37) % 50 for index in range(200)]
    model = planned_model(weights, embedding_bytes=300, head_bytes=600, kv_bytes=1, n_vocab=40)
    nodes = tuple(
        node(f"n{index:04}", memory=2_000 + index * 7_919 % 28_000, speed=1 + index * 104_729 % 900 / 100, slots=2)
        for index in range(1_000)
    )
    rooms = rooms_of(sums_of(model), nodes)
    seats = LoadBalanced().seat(rooms, 200, num_stages, Objective.THROUGHPUT)
    assert seats is not None
    fastest = sorted((room.speed for room in rooms), reverse=True)[:num_stages]
    bound_s = rooms[0].step_sums[-1] / sum(fastest)
    assert slowest_s(rooms, seats) <= bound_s * 1.1


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=40),
    limit=st.integers(1, 6),
    layers_per_speed=st.floats(0.1, 9),
)
def test_nodes_that_are_never_among_the_best_are_left_out(
    shapes: list[tuple[int, int]], limit: int, layers_per_speed: float
) -> None:
    """Whatever a stage may take: who holds most layers, by memory and by time, is among those that are kept."""
    kept = undominated([memory for memory, _ in shapes], [speed for _, speed in shapes], limit)
    held = [min(memory, layers_per_speed * speed) for memory, speed in shapes]
    assert sorted((held[place] for place in kept), reverse=True)[:limit] == sorted(held, reverse=True)[:limit]


def test_of_nodes_that_are_alike_no_more_are_kept_than_are_looked_at() -> None:
    assert undominated([5.0] * 100, [1.0] * 100, 3) == [0, 1, 2]


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    registry = StrategyRegistry(BOTH)
    assert registry.get("uniform") is BOTH[0]
    with pytest.raises(InvalidPlanInput, match="'topology_aware'; known are: load_balanced, uniform"):
        registry.get("topology_aware")
