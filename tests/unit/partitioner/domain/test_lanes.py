"""Seats for the lanes of verified sessions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.partitioner.domain.planning import SeatRules, make_plan
from services.partitioner.domain.strategies.load_balanced import LoadBalanced
from shared.domain.errors import InvalidPlanInput, NoCapacity, VerificationUnavailable
from shared.domain.ids import NodeId
from shared.domain.layers import ModelInfo
from shared.domain.plan import (
    Lane,
    LayerRange,
    NodeCapability,
    Partition,
    PartitionPlan,
    Seating,
    check_plan,
    check_seats,
    shows_seat,
)
from shared.domain.task import Verification
from tests.fakes.planning import audited, node, planned_model, question

THREE = (node("a"), node("b"), node("c"))
FOUR = (*THREE, node("d"))
AUDIT, QUORUM = audited(), Seating(Verification.QUORUM, 1)
RECOVERY = replace(AUDIT, is_recovery=True)


def planned(
    nodes: Sequence[NodeCapability], seating: Seating = AUDIT, *, rules: SeatRules | None = None, **more: object
) -> PartitionPlan:
    wanted = replace(question(nodes=nodes, seating=seating), **more)  # type: ignore[arg-type]
    return make_plan(wanted, LoadBalanced(), rules=rules or SeatRules())


def rows(plan: PartitionPlan) -> list[str]:
    return ["".join(seat.node_id for seat in lane.partitions) for lane in plan.lanes]


def test_three_nodes_and_three_stages_are_seated_by_rotation() -> None:
    plan = planned(THREE)
    assert rows(plan) == ["abc", "cab"]
    assert [seat.layers for seat in plan.lanes[1].partitions] == [seat.layers for seat in plan.lanes[0].partitions]
    assert (plan.blind, plan.spare, plan.spares) == (True, 1, (("b",), ("c",), ("a",)))


def test_the_cut_that_was_asked_for_is_kept_where_nodes_can_hold_it() -> None:
    cut = (LayerRange(0, 1), LayerRange(1, 2), LayerRange(2, 6))
    plan = planned(THREE, replace(RECOVERY, layers=cut), num_stages=3)
    assert [[seat.layers for seat in lane.partitions] for lane in plan.lanes] == [[*cut], [*cut]]
    small = planned(tuple(node(name, memory=450) for name in "abc"), replace(RECOVERY, layers=cut), num_stages=3)
    assert [seat.layers for seat in small.lanes[0].partitions] != [*cut]


@pytest.mark.parametrize("ends", [(1, 2, 5), (1, 1, 6), (2, 1, 6), (3, 6, 9)])
def test_what_is_no_cut_of_the_model_is_refused(ends: tuple[int, ...]) -> None:
    cut = tuple(LayerRange(start, end) for start, end in pairwise((0, *ends)))
    with pytest.raises(InvalidPlanInput, match="are no cut of the 6 layers"):
        planned(THREE, replace(RECOVERY, layers=cut), num_stages=3)


def test_more_nodes_take_the_seats_that_would_load_others_twice() -> None:
    plan = planned(tuple(node(name) for name in "abcdef"))
    assert rows(plan)[0] == "abc"
    assert set(rows(plan)[1]) == set("def")
    assert plan.spare == 4


def test_a_quorum_has_lanes_enough_to_outvote_liars_and_is_blind_where_it_can_be() -> None:
    assert rows(planned(THREE, QUORUM)) == ["abc", "cab", "bca"]
    assert not planned(THREE, QUORUM).blind
    many = planned(tuple(node(name) for name in "abcdefghi"), QUORUM)
    assert (len(many.lanes), many.blind) == (3, True)


def test_too_few_nodes_are_told_with_both_numbers() -> None:
    for seating, needed in ((AUDIT, 3), (QUORUM, 3), (audited(2), 5)):
        with pytest.raises(VerificationUnavailable, match=rf"needs {needed} nodes .*; 2 of the 2 that are present"):
            planned(THREE[:2], seating)
    with pytest.raises(VerificationUnavailable, match=r"needs 3 nodes .*; 0 of the 0"):
        planned(())


def test_nodes_of_another_class_do_not_count() -> None:
    mixed = (*THREE[:2], node("c", numerics_class="other"))
    with pytest.raises(VerificationUnavailable, match="2 of the 3 that are present share one"):
        planned(mixed)


def test_a_lane_0_over_two_classes_is_given_up_for_one_that_can_be_audited() -> None:
    fast = (node("x", numerics_class="gpu", speed=9.0), node("y", numerics_class="gpu", speed=9.0))
    assert set("".join(rows(planned((*THREE, *fast))))) == set("abc")


def test_labels_keep_the_seats_of_a_stage_apart() -> None:
    rules = SeatRules(spread_by="operator")
    owned = (*(node(name, operator="x") for name in "abc"), node("d", operator="y"), node("e", operator="z"))
    plan = planned(owned, rules=rules)
    by_id = {each.node_id: each for each in owned}
    check_seats(plan.lanes, by_id, 1, model=planned_model(), spread_by="operator")
    with pytest.raises(VerificationUnavailable, match="with different operator; 2 of the 4"):
        planned(owned[:4], rules=rules)


def test_a_node_must_have_memory_for_all_its_stages() -> None:
    enough = planned(tuple(node(name, memory=400) for name in "abc"))
    assert rows(enough) == ["abc", "cab"]  # two stages of two layers each
    with pytest.raises(VerificationUnavailable, match="have no room for these lanes"):
        planned(tuple(node(name, memory=399) for name in "abc"))


def test_layers_are_cut_so_that_nodes_can_hold_two_stages() -> None:
    """Lane 0 alone would give the fast node most layers, and with them all its memory."""
    nodes = (node("a", memory=400, speed=8.0), node("b", memory=500), node("c", memory=500))
    plan = planned(nodes, num_stages=3)
    check_seats(plan.lanes, {each.node_id: each for each in nodes}, 1, model=planned_model())
    assert_memory(plan, nodes, planned_model())


def test_a_referee_lane_joins_lanes_that_stay_as_they_are() -> None:
    plan = planned(THREE)
    again = planned(THREE, replace(RECOVERY, with_referee=True, keep=plan.lanes))
    assert again.lanes[:2] == plan.lanes
    assert rows(again)[2] == "bca"
    assert again.blind
    assert again.spare == 0


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("trusted", ["f", "g"])
def test_a_referee_is_whom_the_operator_trusts_where_that_is_possible(stage: int, trusted: str) -> None:
    nodes = tuple(node(name) for name in "abcdefg")
    plan = planned(nodes)
    seating = replace(RECOVERY, with_referee=True, keep=plan.lanes, disputed_stage=stage)
    again = planned(nodes, replace(seating, referees=(NodeId(trusted),)))
    assert again.lanes[:2] == plan.lanes
    is_free = trusted not in {lane.partitions[stage].node_id for lane in plan.lanes}
    assert (again.lanes[2].partitions[stage].node_id == trusted) is is_free


def test_what_keeps_seats_apart_does_not_move_lanes_that_stay() -> None:
    plan = planned(FOUR, num_stages=3)
    apart, excluded = ((NodeId("a"), NodeId("b")),), ((2, NodeId("b")),)
    again = planned(FOUR, replace(RECOVERY, with_referee=True, keep=plan.lanes, apart=apart, excluded=excluded))
    assert again.lanes[:2] == plan.lanes
    row = rows(again)[2]
    assert row[2] != "b"
    assert not {"ab", "ba"} & {row[i] + row[(i + 1) % 3] for i in range(3)}


def test_lanes_to_be_kept_must_be_lanes_of_this_model_on_these_nodes() -> None:
    plan = planned(THREE)
    for keep in (plan.lanes[1:], (plan.lanes[0], plan.lanes[0]), (*plan.lanes, *plan.lanes)):
        with pytest.raises(InvalidPlanInput):
            planned(THREE, replace(RECOVERY, keep=keep))
    with pytest.raises(InvalidPlanInput, match="node c is not among the given nodes"):
        planned(THREE[:2], replace(RECOVERY, keep=plan.lanes))


def test_a_recovery_goes_on_without_spare_and_says_so() -> None:
    plan = planned(THREE[:2], RECOVERY)
    assert (len(plan.lanes), plan.blind, plan.spare) == (2, False, 0)
    with pytest.raises(VerificationUnavailable, match=r"needs 2 nodes .*; 1 of the 1"):
        planned(THREE[:1], RECOVERY)


def test_where_blindness_is_always_wanted_a_recovery_gives_up_stages_or_waits() -> None:
    rules = SeatRules(always_blind=True)
    assert rows(planned(THREE[:2], RECOVERY, rules=rules)) == ["a", "b"]
    with pytest.raises(VerificationUnavailable):
        planned(THREE[:2], RECOVERY, rules=rules, num_stages=2)


def test_pairs_are_kept_apart_around_the_ring() -> None:
    apart = ((NodeId("a"), NodeId("b")),)
    plan = planned(FOUR, replace(AUDIT, apart=apart), num_stages=3)
    for row in rows(plan):
        assert not {"ab", "ba"} & {row[i] + row[(i + 1) % 3] for i in range(3)}
    alone = planned(FOUR, Seating(apart=apart), num_stages=2)
    assert set(rows(alone)[0]) != {"a", "b"}


def test_nodes_are_kept_from_stages_in_every_lane() -> None:
    excluded = ((0, NodeId("a")), (1, NodeId("b")))
    plan = planned(FOUR, replace(AUDIT, excluded=excluded), num_stages=3)
    assert all(row[0] != "a" and row[1] != "b" for row in rows(plan))


def test_a_thousand_nodes_are_seated_too() -> None:
    nodes = tuple(node(f"n{i:04}", speed=1 + i % 7, operator=f"o{i % 5}") for i in range(1_000))
    plan = planned(nodes, audited(2), rules=SeatRules(spread_by="operator"), model=planned_model((100,) * 24))
    assert len(plan.lanes) == 3
    assert len({seat.node_id for seat in plan.seats}) == 9


def assert_memory(plan: PartitionPlan, nodes: Sequence[NodeCapability], model: ModelInfo) -> None:
    for each in nodes:
        held = {seat.layers for seat in plan.seats if seat.node_id == each.node_id}
        need = sum(sum(layer.weight_bytes for layer in model.layers[part.start : part.end]) for part in held)
        assert need <= each.memory_bytes


def can_be_seated(nodes: Mapping[NodeId, NodeCapability], model: ModelInfo, seating: Seating, *, blind: bool) -> bool:
    """By trying everything; one layer per stage."""
    stages = [LayerRange(layer, layer + 1) for layer in range(model.num_layers)]
    for columns in product(permutations(nodes, seating.num_lanes), repeat=len(stages)):
        lanes = tuple(
            Lane(lane, tuple(Partition(s, columns[s][lane], stages[s]) for s in range(len(stages))))
            for lane in range(seating.num_lanes)
        )
        if obeys(lanes, nodes, model, seating, blind=blind):
            return True
    return False


def obeys(
    lanes: Sequence[Lane],
    nodes: Mapping[NodeId, NodeCapability],
    model: ModelInfo,
    seating: Seating,
    *,
    blind: bool,
) -> bool:
    try:
        check_plan(lanes, nodes, model)
        check_seats(
            lanes,
            nodes,
            seating.max_byzantine,
            model=model,
            spread_by="operator",
            with_referee=seating.with_referee,
            blind=blind,
            spare=not seating.is_recovery,
        )
    except (InvalidPlanInput, VerificationUnavailable):
        return False
    for node_id, each in nodes.items():
        held = [seat.stage for lane in lanes for seat in lane.partitions if seat.node_id == node_id]
        if sum(model.layers[stage].weight_bytes for stage in held) > each.memory_bytes:
            return False
    apart = {frozenset(pair) for pair in seating.apart}
    for lane in lanes:
        ring = [seat.node_id for seat in lane.partitions]
        if len(set(ring)) < len(ring):
            return False
        if any(frozenset(pair) in apart for pair in zip(ring, [*ring[1:], ring[0]], strict=True)):
            return False
        if any((stage, node_id) in seating.excluded for stage, node_id in enumerate(ring)):
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(
    memory=st.lists(st.sampled_from([100, 200, 350, 900]), min_size=2, max_size=4),
    classes=st.lists(st.sampled_from(["", "", "", "other"]), min_size=4, max_size=4),
    owners=st.lists(st.sampled_from(["x", "y", None, None]), min_size=4, max_size=4),
    weights=st.lists(st.sampled_from([50, 100, 150]), min_size=1, max_size=3),
    mode=st.sampled_from([Verification.AUDIT, Verification.QUORUM]),
    is_recovery=st.booleans(),
    with_referee=st.booleans(),
    apart=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=1),
    excluded=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=2),
)
def test_a_plan_keeps_the_rules_and_is_refused_only_when_no_seating_exists(
    memory: list[int],
    classes: list[str],
    owners: list[str | None],
    weights: list[int],
    mode: Verification,
    is_recovery: bool,
    with_referee: bool,
    apart: list[tuple[int, int]],
    excluded: list[tuple[int, int]],
) -> None:
    names = [NodeId(f"n{i}") for i in range(4)]
    nodes = tuple(
        replace(node(names[i], memory=size, numerics_class=classes[i]), labels=(("operator", owner),) if owner else ())
        for i, (size, owner) in enumerate(zip(memory, owners, strict=False))
    )
    seating = Seating(
        mode,
        1,
        with_referee=with_referee and is_recovery and mode is Verification.AUDIT,
        is_recovery=is_recovery,
        apart=tuple((names[a], names[b]) for a, b in apart if a != b),
        excluded=tuple((stage, names[index]) for stage, index in excluded),
    )
    model = planned_model(weights)
    must_be_blind = mode is Verification.AUDIT and not is_recovery
    by_id = {each.node_id: each for each in nodes}
    wanted = question(model, nodes, num_stages=len(weights), seating=seating)
    try:
        plan = make_plan(wanted, LoadBalanced(), rules=SeatRules(spread_by="operator"))
    except (VerificationUnavailable, NoCapacity, InvalidPlanInput):
        assert not can_be_seated(by_id, model, seating, blind=must_be_blind)
        return
    assert len(plan.lanes) == seating.num_lanes
    assert obeys(plan.lanes, by_id, model, seating, blind=must_be_blind)
    assert plan.blind == (shows_seat(plan.lanes[: 3 if mode is Verification.QUORUM else 2]) is None)
    if not plan.blind:
        assert not can_be_seated(by_id, model, seating, blind=True)
