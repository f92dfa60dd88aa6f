"""How many pipelines nodes are divided among."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.partitioner.domain.pipelines import MANY_NODES, NUMBERS_TRIED, Plans, make_pipelines, rated
from services.partitioner.domain.planning import SeatRules, make_plan
from services.partitioner.domain.prediction import predict
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from shared.domain.errors import ButterflyError, VerificationUnavailable
from shared.domain.ids import NodeId
from shared.domain.plan import NodeCapability, Objective, PartitionPlan, Seating, check_plan, check_seats, holders
from shared.domain.plan_figures import Load
from shared.domain.task import Verification
from tests.fakes.planning import NO_LANES, audited, node, planned_model, question

MODEL = planned_model((2_700_000,) * 30)
"""As heavy as SmolLM2-135M."""
ROOMY = 10**9
AUDIT = audited()


def nodes(count: int, **more: object) -> tuple[NodeCapability, ...]:
    return tuple(replace(node(f"n{index:02}", memory=ROOMY), **more) for index in range(count))  # type: ignore[arg-type]  # fields


def made(
    some: Sequence[NodeCapability], seating: Seating = AUDIT, *, objective: Objective = Objective.THROUGHPUT
) -> Plans:
    wanted = replace(question(MODEL, some, seating=seating), objective=objective)
    return make_pipelines(wanted, LoadBalanced(), preferred_stages=3)


def seated(*plans: PartitionPlan) -> set[NodeId]:
    return {seat.node_id for plan in plans for seat in plan.seats}


def total(plans: Plans, some: Sequence[NodeCapability]) -> float:
    return sum(pipeline.tokens_per_s for pipeline in rated(plans, MODEL, {each.node_id: each for each in some}))


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_a_small_cluster_has_the_one_plan_it_would_have_anyway(count: int) -> None:
    wanted = question(MODEL, nodes(count), seating=AUDIT)
    assert made(nodes(count)) == (make_plan(wanted, LoadBalanced(), preferred_stages=3),)


@pytest.mark.parametrize(("count", "pipelines"), [(7, 2), (8, 2), (10, 3), (13, 4)])
def test_more_nodes_make_more_pipelines_that_share_no_node_and_leave_one_outside(count: int, pipelines: int) -> None:
    some = nodes(count)
    plans = made(some)
    assert len(plans) == pipelines
    assert sum(len(seated(plan)) for plan in plans) == len(seated(*plans)) < count
    assert total(plans, some) > 1.5 * total(plans[:1], some)


def test_equal_pipelines_add_up() -> None:
    some = nodes(7)
    one, other = rated(made(some), MODEL, {each.node_id: each for each in some})
    assert one.tokens_per_s == pytest.approx(other.tokens_per_s)
    alone = predict(one.plan, MODEL, {each.node_id: each for each in some}, Load(sequences=3))
    assert one.tokens_per_s == pytest.approx(alone.verified_tokens_per_s)


def test_unverified_sessions_need_no_spare() -> None:
    assert [len(seated(plan)) for plan in made(nodes(6), NO_LANES)] == [3, 3]


def test_nodes_of_one_machine_gain_nothing_by_being_divided() -> None:
    assert len(made(nodes(12, host="same"))) == 1


def test_machines_are_kept_whole_where_that_gives_more() -> None:
    some = tuple(replace(each, host=f"host-{index // 3}") for index, each in enumerate(nodes(9)))
    hosts = {each.node_id: each.host for each in some}
    plans = made(some, NO_LANES)
    assert len(plans) == 3
    assert total(plans, some) <= 3 * total(plans[:1], some) + 1e-6
    assert {len({hosts[node_id] for node_id in seated(plan)}) for plan in plans} <= {1, 3}


def test_for_latency_no_pipeline_takes_nodes_that_make_the_first_one_faster() -> None:
    some = (*nodes(7), *(node(f"s{index}", memory=ROOMY, speed=0.5) for index in range(4)))
    wanted = replace(question(MODEL, some, seating=AUDIT), objective=Objective.LATENCY)
    alone = make_plan(wanted, LoadBalanced(), preferred_stages=3)
    plans = made(some, objective=Objective.LATENCY)
    assert plans[0].plan_id == alone.plan_id
    assert len(plans) == 2
    assert seated(plans[0]).isdisjoint(seated(plans[1]))
    assert len(seated(*plans)) < len(some)


def test_the_spare_can_hold_every_stage_though_the_slowest_node_cannot() -> None:
    some = (*nodes(7), node("tiny", memory=1_000, speed=0.1))
    plans = made(some)
    assert len(plans) == 2
    (outside,) = [each for each in some if each.node_id not in seated(*plans) and each.node_id != "tiny"]
    assert holders(MODEL, plans[0].lanes[0].partitions[0].layers, [outside], outside.kind)


def test_nodes_that_compute_otherwise_have_pipelines_of_their_own() -> None:
    some = (*nodes(4, numerics_class="one"), *(replace(each, node_id=NodeId(f"o{each.node_id}")) for each in nodes(4)))
    plans = made(some)
    kinds = {each.node_id: each.kind for each in some}
    assert [len({kinds[node_id] for node_id in seated(plan)}) for plan in plans] == [1, 1]
    assert len({kinds[plan.seats[0].node_id] for plan in plans}) == 2


def test_a_session_that_runs_gets_one_plan() -> None:
    assert len(made(nodes(12), replace(AUDIT, is_recovery=True))) == 1


def test_too_few_nodes_are_told_as_for_one_plan() -> None:
    with pytest.raises(VerificationUnavailable, match="needs 3 nodes"):
        made(nodes(2))


def test_thousands_of_nodes_get_the_largest_number_of_pipelines() -> None:
    assert len(made(nodes(MANY_NODES * 4))) == NUMBERS_TRIED[-1]


@settings(max_examples=40)
@given(
    figures=st.lists(st.tuples(st.floats(0.2, 8), st.sampled_from((10**8, ROOMY))), min_size=3, max_size=14),
    classes=st.integers(1, 2),
    f=st.integers(0, 2),
    objective=st.sampled_from(Objective),
)
def test_pipelines_keep_all_rules_of_plans_are_apart_and_never_give_less_than_one(
    figures: list[tuple[float, int]], classes: int, f: int, objective: Objective
) -> None:
    some = tuple(
        node(f"n{index:02}", memory=memory, speed=speed, numerics_class=f"class-{index % classes}")
        for index, (speed, memory) in enumerate(figures)
    )
    seating = audited(f) if f else NO_LANES
    wanted = replace(question(MODEL, some, seating=seating), objective=objective)
    try:
        alone = make_plan(wanted, LoadBalanced(), preferred_stages=3)
    except ButterflyError:
        return
    plans = make_pipelines(wanted, LoadBalanced(), preferred_stages=3)
    assert plans == make_pipelines(wanted, LoadBalanced(), preferred_stages=3)
    by_id = {each.node_id: each for each in some}
    for plan in plans:
        check_plan(plan.lanes, by_id, MODEL)
        if f:
            check_seats(plan.lanes, by_id, f, model=MODEL)
    assert sum(len(seated(plan)) for plan in plans) == len(seated(*plans))
    assert total(plans, some) >= total((alone,), some)
    if f and len(plans) > 1:
        outside = [each for each in some if each.node_id not in seated(*plans)]
        for seat in (seat for plan in plans for seat in plan.lanes[0].partitions):
            assert holders(MODEL, seat.layers, outside, by_id[seat.node_id].kind)


def test_seats_are_spread_by_label_in_every_pipeline() -> None:
    some = tuple(node(f"n{index:02}", memory=ROOMY, zone=f"z{index % 3}") for index in range(9))
    wanted = question(MODEL, some, seating=AUDIT)
    rules = SeatRules(spread_by="zone")
    by_id = {each.node_id: each for each in some}
    for plan in make_pipelines(wanted, LoadBalanced(), preferred_stages=3, rules=rules):
        assert len(plan.lanes) == 2 == AUDIT.num_lanes
        assert wanted.seating.verification is Verification.AUDIT
        check_seats(plan.lanes, by_id, 1, model=MODEL, spread_by="zone")
