import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.partitioner.domain.placement import rooms_of, sums_of
from services.partitioner.domain.planning import make_plan
from services.partitioner.domain.strategies.base import Strategy
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from services.partitioner.domain.strategies.uniform import Uniform
from shared.domain.errors import InvalidPlanInput, NoCapacity, UnsupportedModel, VerificationUnavailable
from shared.domain.ids import NodeId
from shared.domain.layers import seat_bytes
from shared.domain.plan import NodeCapability, PartitionPlan, Seating, check_plan
from shared.domain.task import Verification
from tests.fakes.planning import audited, node, planned_model, question

FOUR = (node("a"), node("b"), node("c"), node("d"))
MIB = 1 << 20


def seats(plan: PartitionPlan) -> list[str]:
    return [f"{seat.node_id}:{seat.layers}" for seat in plan.lanes[0].partitions]


def planned(nodes: tuple[NodeCapability, ...], **more: object) -> PartitionPlan:
    return make_plan(replace(question(nodes=nodes), **more), LoadBalanced())  # type: ignore[arg-type]


def test_without_a_wish_there_are_three_stages_and_the_rest_are_spares() -> None:
    plan = planned(FOUR)
    assert seats(plan) == ["a:0-2", "b:2-4", "c:4-6"]
    assert plan.spares == (("d",), ("d",), ("d",))


def test_the_wished_number_of_stages_is_kept() -> None:
    assert [len(seats(planned(FOUR, num_stages=wished))) for wished in (1, 2, 4)] == [1, 2, 4]
    with pytest.raises(NoCapacity, match="5 stages need as many nodes; 4 are ready"):
        planned(FOUR, num_stages=5)


def test_the_preferred_number_of_stages_gives_way_to_what_is_there() -> None:
    def stages(nodes: tuple[NodeCapability, ...], preferred: int) -> int:
        return len(seats(make_plan(question(nodes=nodes), LoadBalanced(), preferred_stages=preferred)))

    assert stages(FOUR, 2) == 2
    assert stages(FOUR[:2], 3) == 2
    assert stages(FOUR[:1], 3) == 1
    small = tuple(node(f"n{i}", memory=150) for i in range(6))
    assert stages(small, 3) == 6
    assert stages((node("big"), node("tiny-1", memory=10), node("tiny-2", memory=10)), 3) == 1


def test_a_model_that_cannot_be_cut_goes_to_one_node() -> None:
    whole = planned_model(splittable=False)
    assert seats(planned((node("a", memory=599), node("b", memory=600)), model=whole)) == ["b:0-6"]
    with pytest.raises(UnsupportedModel, match="2 stages: its family runs whole"):
        planned(FOUR, model=whole, num_stages=2)


def test_spares_are_those_that_hold_the_stage_fastest_first_then_by_id() -> None:
    extra = (node("e", speed=0.5), node("f", speed=0.8), node("g", speed=0.8), node("h", memory=150, speed=0.9))
    plan = planned((*FOUR[:3], *extra))
    assert seats(plan) == ["a:0-2", "b:2-4", "c:4-6"]
    assert plan.spares == (("f", "g", "e"),) * 3


def test_equal_seats_have_one_plan_id_whatever_the_spares() -> None:
    assert planned(FOUR).plan_id == planned(FOUR[:3]).plan_id
    ids = {planned(FOUR, num_stages=wished).plan_id for wished in (1, 2, 3)}
    other_content = planned(FOUR, model=planned_model(root="other"))
    assert len(ids | {other_content.plan_id}) == 4


def test_missing_memory_is_told_in_figures() -> None:
    model = planned_model((10 * MIB,) * 6)
    with pytest.raises(NoCapacity, match=r"needs 60 MiB .* nodes offer 45 MiB: 15 MiB are missing"):
        planned((node("a", memory=30 * MIB), node("b", memory=15 * MIB)), model=model)
    whole = planned_model((10 * MIB,) * 6, splittable=False)
    with pytest.raises(NoCapacity, match=r"needs 60 MiB on one node .* has 50 MiB: 10 MiB are missing"):
        planned((node("a", memory=50 * MIB), node("b", memory=50 * MIB)), model=whole)
    with pytest.raises(NoCapacity, match="cannot be divided among them"):
        planned((node("a", memory=35 * MIB), node("b", memory=25 * MIB)), model=model)


def test_no_node_is_no_capacity() -> None:
    with pytest.raises(NoCapacity, match="no node is ready"):
        planned(())


def test_a_layer_larger_than_every_node_is_told_with_its_number() -> None:
    model = planned_model((MIB, 9 * MIB, MIB))
    with pytest.raises(InvalidPlanInput, match=r"layer 1 needs 9 MiB .* any of the 2 nodes has \(5 MiB\)"):
        planned((node("a", memory=5 * MIB), node("b", memory=3 * MIB)), model=model)


@pytest.mark.parametrize(
    "bad",
    [
        node("a", speed=math.nan),
        node("a", speed=math.inf),
        node("a", speed=0),
        node("a", speed=-1),
        node("a", memory=-1),
        node("a", slots=0),
        node("a", context_tokens=0),
    ],
)
def test_impossible_capabilities_are_refused_with_the_nodes_name(bad: NodeCapability) -> None:
    with pytest.raises(InvalidPlanInput, match="the node a "):
        planned((bad, node("b")))


def test_a_node_given_twice_is_refused() -> None:
    with pytest.raises(InvalidPlanInput, match="the node a is given twice"):
        planned((node("a"), node("a")))


def test_impossible_numbers_of_stages_and_lanes_are_refused() -> None:
    for wished in (0, 7):
        with pytest.raises(InvalidPlanInput, match=f"{wished} stages cannot be made of the 6 layers"):
            planned(FOUR, num_stages=wished)
    for f in (0, -1, 512):
        with pytest.raises(InvalidPlanInput, match=f"audit does not go with max_byzantine {f}"):
            planned(FOUR, seating=audited(f))
    with pytest.raises(InvalidPlanInput, match="none does not go with max_byzantine 1"):
        planned(FOUR, seating=Seating(max_byzantine=1))


def test_an_answer_that_is_held_back_needs_a_node_beside_all_lanes() -> None:
    quorum = Seating(Verification.QUORUM, 1)
    three = FOUR[:3]
    assert len(planned(three, seating=quorum).lanes) == 3
    with pytest.raises(
        VerificationUnavailable, match="quorum with max_byzantine 1 and hold needs 4 nodes of one numer"
    ):
        planned(three, seating=replace(quorum, hold=True))
    assert len(planned(FOUR, seating=replace(quorum, hold=True)).lanes) == 3
    assert len(planned(three, seating=replace(audited(1), hold=True)).lanes) == 2  # the spare is the fresh one


@given(
    weights=st.lists(st.integers(10, 90), min_size=1, max_size=12),
    memory=st.lists(st.integers(20, 400), min_size=1, max_size=9),
    strategy=st.sampled_from([Uniform(), LoadBalanced()]),
    preferred=st.integers(1, 5),
)
def test_every_plan_keeps_the_rules_and_spares_hold_no_seat(
    weights: list[int], memory: list[int], strategy: Strategy, preferred: int
) -> None:
    nodes = tuple(node(f"n{i}", memory=size, speed=1 + i % 3) for i, size in enumerate(memory))
    model = planned_model(weights)
    try:
        plan = make_plan(question(model, nodes, strategy=strategy.name), strategy, preferred_stages=preferred)
    except (NoCapacity, InvalidPlanInput):
        return
    by_id: dict[NodeId, NodeCapability] = {entry.node_id: entry for entry in nodes}
    check_plan(plan.lanes, by_id, model)
    for seat, spares in zip(plan.lanes[0].partitions, plan.spares, strict=True):
        stage_bytes = sum(weights[seat.layers.start : seat.layers.end])
        assert all(by_id[holder].memory_bytes >= stage_bytes for holder in (seat.node_id, *spares))
        assert not {entry.node_id for entry in plan.lanes[0].partitions} & set(spares)


@given(
    weights=st.lists(st.integers(0, 90), min_size=1, max_size=6), ends=st.tuples(st.integers(0, 50), st.integers(0, 50))
)
def test_the_bytes_of_a_seat_are_those_that_others_tell_of(weights: list[int], ends: tuple[int, int]) -> None:
    model = planned_model(weights, embedding_bytes=ends[0], head_bytes=ends[1], kv_bytes=7)
    (room,) = rooms_of(sums_of(model), [node("a", slots=2, context_tokens=5)])
    for start in range(len(weights)):
        for end in range(start + 1, len(weights) + 1):
            assert room.memory_bytes(start, end) == seat_bytes(model, start, end, rows=10)
