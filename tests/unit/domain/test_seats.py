"""C1 to C4: what the seats of a verified session must keep."""

from collections.abc import Mapping, Sequence

import pytest

from shared.domain.errors import InvalidPlanInput, VerificationUnavailable
from shared.domain.ids import NodeId
from shared.domain.plan import Lane, LayerRange, NodeCapability, Partition, check_seats, num_lanes, shows_seat
from shared.domain.task import Verification
from tests.fakes.planning import node, planned_model

MODEL = planned_model()


def lanes(*rows: str) -> tuple[Lane, ...]:
    """One letter per seat; each stage has two layers."""
    return tuple(
        Lane(index, tuple(Partition(s, NodeId(name), LayerRange(2 * s, 2 * s + 2)) for s, name in enumerate(row)))
        for index, row in enumerate(rows)
    )


def nodes(*given: NodeCapability) -> Mapping[NodeId, NodeCapability]:
    return {each.node_id: each for each in given}


THREE = nodes(node("A"), node("B"), node("C"))
FOUR = nodes(node("A"), node("B"), node("C"), node("D"))


def check(seats: Sequence[Lane], given: Mapping[NodeId, NodeCapability] = THREE, f: int = 1, **more: object) -> None:
    check_seats(seats, given, f, model=MODEL, **more)  # type: ignore[arg-type]  # a test names options that exist


def test_three_nodes_in_rotation_pass() -> None:
    check(lanes("ABC", "CAB"))


def test_two_seats_of_a_stage_on_one_node_break_c1() -> None:
    with pytest.raises(InvalidPlanInput, match=r"stage 1: lanes 0 and 1 are both on the node B \(C1\)"):
        check(lanes("ABC", "CBA"), blind=False)


def test_two_seats_of_a_stage_with_one_label_break_c1_even_on_different_nodes() -> None:
    labelled = nodes(node("A", operator="x"), node("B"), node("C", operator="x"), node("D"), node("E"))
    check(lanes("ABD", "CAB"), labelled)
    with pytest.raises(InvalidPlanInput, match=r"stage 0: .* both on the operator 'x'"):
        check(lanes("ABD", "CAB"), labelled, spread_by="operator")
    check(lanes("ABD", "EAB"), labelled, spread_by="operator")


def test_the_other_rotation_breaks_c2() -> None:
    with pytest.raises(InvalidPlanInput, match=r"lane 1 is not blind: at stage 0 it has the node B, .* lane 0"):
        check(lanes("ABC", "BCA"))
    check(lanes("ABC", "BCA"), blind=False)


def test_a_referee_lane_may_be_shown_what_the_others_compute() -> None:
    rotated = lanes("ABC", "CAB", "BCA")
    assert shows_seat(rotated) is not None
    check(rotated, with_referee=True)
    with pytest.raises(InvalidPlanInput, match="not blind"):
        check(rotated)


def test_the_executor_may_sit_one_stage_later_in_an_audit_lane_and_on_stages_of_its_own() -> None:
    assert shows_seat(lanes("ABC", "CAB")) is None
    assert shows_seat(lanes("ABC", "DDD")) is None


def test_without_nodes_for_a_referee_c3_fails_and_says_how_many_there_are() -> None:
    small = {**FOUR, NodeId("C"): node("C", memory=100), NodeId("D"): node("D", memory=100)}
    with pytest.raises(VerificationUnavailable, match=r"needs 3 nodes that could hold stage 0 .*; 2 are present"):
        check(lanes("A", "B"), small, blind=False)
    check(lanes("A", "B"), small, spare=False)


def test_nodes_of_another_class_are_no_referees() -> None:
    mixed = {**FOUR, NodeId("C"): node("C", numerics_class="other"), NodeId("D"): node("D", numerics_class="other")}
    with pytest.raises(VerificationUnavailable, match="2 are present"):
        check(lanes("A", "B"), mixed)


def test_seats_of_one_stage_in_different_classes_break_c4() -> None:
    mixed = {**FOUR, NodeId("C"): node("C", numerics_class="other")}
    with pytest.raises(InvalidPlanInput, match=r"stage 0 of lane 1 computes as 'other', .* as '' \(C4\)"):
        check(lanes("ABD", "CAB"), mixed)


def test_lanes_with_other_stages_are_refused() -> None:
    cut = Lane(1, (Partition(0, NodeId("C"), LayerRange(0, 3)), Partition(1, NodeId("A"), LayerRange(3, 6))))
    with pytest.raises(InvalidPlanInput, match="layers 0-2 in lane 0 and 0-3 in lane 1"):
        check((*lanes("ABC"), cut))
    with pytest.raises(InvalidPlanInput, match="different numbers of stages"):
        check((*lanes("ABC"), lanes("", "CA")[1]))


def test_fewer_lanes_than_must_agree_are_refused() -> None:
    with pytest.raises(InvalidPlanInput, match="3 lanes must agree, the plan has 2"):
        check(lanes("ABC", "CAB"), f=2)


def test_the_mode_decides_how_many_lanes_there_are() -> None:
    modes = (Verification.NONE, Verification.AUDIT, Verification.QUORUM)
    assert [num_lanes(mode, 0 if mode is Verification.NONE else 2) for mode in modes] == [1, 3, 5]
