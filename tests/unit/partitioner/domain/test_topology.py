import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.partitioner.domain.bounds import least_s
from services.partitioner.domain.hops import Hops
from services.partitioner.domain.placement import SeatRoom, rooms_of, sums_of
from services.partitioner.domain.planning import make_plan
from services.partitioner.domain.prediction import predict
from services.partitioner.domain.quality import cut_of, estimate_quality
from services.partitioner.domain.rebalancing import advise
from services.partitioner.domain.strategies.choosing import best_cut, best_seats, searched_cut
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from services.partitioner.domain.strategies.pipeline import Pipelines
from services.partitioner.domain.strategies.topology_aware import TopologyAware
from services.partitioner.domain.strategies.uniform import Uniform
from shared.domain.errors import InvalidPlanInput
from shared.domain.ids import NodeId
from shared.domain.layers import ModelInfo
from shared.domain.measured import MAX_LINKS, Measured, Pace, PeerLink
from shared.domain.plan import NodeCapability, Objective, PlanInput
from shared.domain.plan_figures import Load
from tests.fakes.planning import node, planned_model

MB = 1_000_000
MODEL = planned_model((100 * MB,) * 6)
NEAR, FAR = (0.001, 1e9), (0.2, 1e9)


def measured(
    name: str, *, memory: int = 10_000, bytes_per_s: float = 10e9, **links: tuple[float, float]
) -> NodeCapability:
    ways = tuple(PeerLink(NodeId(peer), *way) for peer, way in sorted(links.items()))
    return replace(node(name, memory=memory * MB), measured=Measured(Pace(1 / bytes_per_s, 0.2 / bytes_per_s), ways))


def wanted(nodes: tuple[NodeCapability, ...], objective: Objective = Objective.LATENCY, **more: object) -> PlanInput:
    return PlanInput(MODEL, nodes, "topology_aware", objective=objective, **more)  # type: ignore[arg-type]  # named


def seats(nodes: tuple[NodeCapability, ...], objective: Objective = Objective.LATENCY, **more: object) -> list[str]:
    plan = make_plan(wanted(nodes, objective, **more), TopologyAware())
    return [f"{seat.node_id}:{seat.layers}" for seat in plan.lanes[0].partitions]


def test_for_latency_the_fastest_node_that_holds_all_needs_no_hop() -> None:
    assert seats((measured("a"), measured("b", bytes_per_s=20e9), measured("c"))) == ["b:0-6"]


def test_for_throughput_all_nodes_share_the_work() -> None:
    assert len(seats((measured("a"), measured("b"), measured("c")), Objective.THROUGHPUT)) == 3


def test_near_nodes_are_seated_rather_than_faster_ones_far_away() -> None:
    a = measured("a", memory=300, b=NEAR, c=FAR)
    found = seats((a, measured("b", memory=300, c=FAR), measured("c", memory=300, bytes_per_s=12e9)))
    assert {seat[0] for seat in found} == {"a", "b"}


def test_a_slow_link_is_taken_where_fewest_bytes_pass() -> None:
    """The token's id goes back over it, no hidden state does."""
    slow = (0.001, 10.0)
    nodes = (
        measured("a", memory=200, b=NEAR, c=slow),
        measured("b", memory=200, c=NEAR),
        measured("c", memory=200),
    )
    order = [seat[0] for seat in seats(nodes, Objective.THROUGHPUT)]
    assert (len(order), {order[0], order[-1]}) == (3, {"a", "c"})


def test_a_way_nobody_measured_is_no_shorter_than_those_that_were() -> None:
    rooms = rooms_of(sums_of(MODEL), [measured("a", b=FAR), measured("b"), measured("c")])
    assert Hops(rooms).between(0, 2).latency_s == pytest.approx(0.1)
    assert Hops(rooms).between(1, 0).latency_s == pytest.approx(0.1)
    assert Hops(rooms).between(1, 2).latency_s < 0.01


SHAPES = st.tuples(st.sampled_from([150, 250, 400, 900]), st.sampled_from([5e9, 10e9, 30e9]))
WAYS = st.tuples(st.sampled_from([0.0005, 0.01, 0.08]), st.sampled_from([1e6, 1e8, 1e9]))
MODELS = st.builds(
    lambda sizes, head: planned_model([size * MB for size in sizes], head_bytes=head * MB),
    st.lists(st.integers(50, 150), min_size=1, max_size=6),
    st.integers(0, 100),
)


@st.composite
def clusters(draw: st.DrawFn, max_size: int = 5) -> tuple[NodeCapability, ...]:
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=max_size))
    nodes = []
    for index, (memory, speed) in enumerate(shapes):
        links = {f"n{peer}": draw(WAYS) for peer in range(index)}
        nodes.append(measured(f"n{index}", memory=memory, bytes_per_s=speed, **links))
    return tuple(nodes)


def rooms_for(model: ModelInfo, nodes: tuple[NodeCapability, ...]) -> tuple[SeatRoom, ...]:
    return rooms_of(sums_of(model), nodes)


@given(model=MODELS, nodes=clusters(), objective=st.sampled_from(Objective), num_stages=st.none() | st.integers(1, 5))
def test_every_layer_is_held_once_within_memory_and_equal_questions_get_equal_seats(
    model: ModelInfo, nodes: tuple[NodeCapability, ...], objective: Objective, num_stages: int | None
) -> None:
    rooms = rooms_for(model, nodes)
    by_id = {room.node.node_id: room for room in rooms}
    found = best_seats(rooms, model.num_layers, num_stages, objective)
    if found is None:
        return
    assert [layer for seat in found for layer in range(seat.layers.start, seat.layers.end)] == list(
        range(model.num_layers)
    )
    assert len({seat.node_id for seat in found}) == len(found) == (num_stages or len(found))
    assert all(by_id[seat.node_id].holds(seat.layers.start, seat.layers.end) for seat in found)
    assert best_seats(rooms_for(model, nodes), model.num_layers, num_stages, objective) == found


@given(model=MODELS, nodes=clusters(max_size=6), objective=st.sampled_from(Objective))
def test_a_plan_gets_no_worse_when_a_node_is_added(
    model: ModelInfo, nodes: tuple[NodeCapability, ...], objective: Objective
) -> None:
    def value(some: tuple[NodeCapability, ...]) -> float:
        if not some:
            return math.inf
        rooms = rooms_for(model, some)
        cut = best_cut(Pipelines(rooms, model.num_layers, Hops(rooms)), None, objective)
        return math.inf if cut is None else cut.value(objective)[0]

    assert value(nodes) <= value(nodes[:-1]) * (1 + 1e-9)


@given(model=MODELS, nodes=clusters(), objective=st.sampled_from(Objective))
def test_the_search_is_never_better_than_the_optimum_nor_that_than_the_bound(
    model: ModelInfo, nodes: tuple[NodeCapability, ...], objective: Objective
) -> None:
    rooms = rooms_for(model, nodes)
    pipelines = Pipelines(rooms, model.num_layers, Hops(rooms))
    best, found = best_cut(pipelines, None, objective), searched_cut(pipelines, None, objective)
    if best is None:
        assert found is None
        return
    assert best.value(objective)[0] >= least_s(rooms, model.num_layers, objective) * (1 - 1e-9)
    if found is not None:
        assert found.value(objective)[0] >= best.value(objective)[0] * (1 - 1e-9)


@pytest.mark.parametrize(
    "bad",
    [
        Measured(Pace(math.nan, 1e-10)),
        Measured(Pace(-1e-10, 1e-10)),
        Measured(Pace(1e-10, math.inf)),
        Measured(Pace(1e-10, 1e-10), (PeerLink(NodeId("a"), 0.1, 1e6),)),
        Measured(Pace(1e-10, 1e-10), (PeerLink(NodeId("b"), -0.1, 1e6),)),
        Measured(Pace(1e-10, 1e-10), (PeerLink(NodeId("b"), 0.1, 0.0),)),
        Measured(Pace(1e-10, 1e-10), tuple(PeerLink(NodeId(f"p{i}"), 0.1, 1e6) for i in range(MAX_LINKS + 1))),
    ],
)
def test_impossible_measured_figures_are_refused_with_the_nodes_name(bad: Measured) -> None:
    with pytest.raises(InvalidPlanInput, match="the node a: "):
        make_plan(wanted((replace(node("a"), measured=bad),)), TopologyAware())


def test_a_prediction_adds_up_stages_and_hops() -> None:
    nodes = (measured("a", memory=300, b=(0.01, 1e6)), measured("b", memory=300))
    plan = make_plan(wanted(nodes), TopologyAware())
    by_id = {entry.node_id: entry for entry in nodes}
    told = predict(plan, MODEL, by_id, Load(sequences=1, prompt_tokens=64))
    assert told.token_s == pytest.approx(600e6 / 10e9 + 2 * 0.005 + 36e-6)
    assert told.token_s == pytest.approx(cut_of(plan, MODEL, by_id).token_s)
    assert told.tokens_per_s == pytest.approx(1 / told.token_s)
    assert told.first_token_s == pytest.approx(64 * 0.2 * 600e6 / 10e9 + 0.005 + 64 * 32e-6)
    assert predict(plan, MODEL, by_id, Load(sequences=2)).tokens_per_s > 1.5 * told.tokens_per_s
    assert told.is_measured
    assert [seat.weight_bytes for seat in told.seats] == [300 * MB, 300 * MB]


def test_quality_tells_headroom_and_what_cannot_be_beaten() -> None:
    nodes = (measured("a", memory=400, b=NEAR), measured("b", memory=800))
    quality = estimate_quality(
        make_plan(wanted(nodes, Objective.THROUGHPUT, num_stages=2), Uniform()), MODEL, {n.node_id: n for n in nodes}
    )
    assert quality.memory_headroom == pytest.approx(0.25)
    assert quality.pace_s == pytest.approx(0.03)
    assert quality.throughput_excess == pytest.approx(0.0, abs=1e-6)
    assert quality.latency_excess > 0


def test_another_plan_is_advised_only_if_it_saves_more_than_the_threshold() -> None:
    nodes = (measured("a", bytes_per_s=5e9), measured("b", bytes_per_s=20e9))
    by_id = {entry.node_id: entry for entry in nodes}
    even = make_plan(wanted(nodes, num_stages=2), Uniform())
    better = make_plan(wanted(nodes, Objective.THROUGHPUT, num_stages=2), LoadBalanced())

    def advised(threshold: float) -> bool:
        return advise(even, better, MODEL, by_id, objective=Objective.THROUGHPUT, threshold=threshold).worth_it

    assert advised(0.1)
    assert not advised(0.9)
    assert not advise(even, even, MODEL, by_id, objective=Objective.THROUGHPUT, threshold=0.0).worth_it
