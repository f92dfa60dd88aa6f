"""Who sits where after a loss: every choice that a small cluster has is compared."""

from collections.abc import Mapping, Sequence

import pytest

from services.coordinator.domain.refilling import Candidate, num_replaying, refill
from shared.domain.ids import NodeId
from shared.domain.plan import PartitionPlan
from tests.fakes.partitioner import even_plan

NODES = "abcd"


def candidates(
    keeping: Sequence[str], *, nodes: str = NODES, loaded: Mapping[int, str] | None = None
) -> list[list[Candidate]]:
    """`keeping`: per stage, the nodes that have the rows; `loaded`: those that hold the stage, if not all of them."""
    return [
        [
            Candidate(NodeId(node), keeps_rows=node in keep, has_loaded=node in (loaded or {}).get(stage, nodes))
            for node in nodes
        ]
        for stage, keep in enumerate(keeping)
    ]


def seats(plan: PartitionPlan | None) -> list[str]:
    return ["".join(seat.node_id for seat in lane.partitions) for lane in plan.lanes] if plan else []


def any_plan(_: PartitionPlan) -> bool:
    return True


def test_an_audit_lane_that_is_whole_goes_on_as_lane_0() -> None:
    plan = even_plan("xyz", num_lanes=2)
    found = refill(plan, candidates(["a", "b", "cd"]), num_lanes=2, is_right=any_plan)
    assert found is not None
    assert seats(found)[0] in {"abc", "abd"}
    assert [seat.layers for seat in found.lanes[1].partitions] == [seat.layers for seat in plan.lanes[0].partitions]
    assert found.plan_id != plan.plan_id


@pytest.mark.parametrize("keeping", [["a", "bc", "cd"], ["cd", "ac", "b"]], ids=["the first", "the last"])
def test_where_one_seat_lacks_the_rows_it_alone_computes_again(keeping: Sequence[str]) -> None:
    # At one stage a single node keeps the rows: one lane begins anew there, and it is not lane 0.
    found = refill(even_plan("xyz", num_lanes=2), candidates(keeping), num_lanes=2, is_right=any_plan)
    assert found is not None
    cold = [sum(node not in keep for node, keep in zip(lane, keeping, strict=True)) for lane in seats(found)]
    assert cold == [0, 1]


def test_no_node_computes_again_for_two_seats_if_another_can() -> None:
    # One node keeps each of the first two stages; c or d computes the one, and the other one the other.
    keeping = ["a", "b", "cd"]
    found = refill(even_plan("xyz", num_lanes=2), candidates(keeping), num_lanes=2, is_right=any_plan)
    cold = [node for lane in seats(found) for node, keep in zip(lane, keeping, strict=True) if node not in keep]
    assert len(cold) == len(set(cold)) == 2


def test_no_auditor_gets_the_answer_from_another_lane_if_that_can_be() -> None:
    # Most rows are kept with lane 1 on "cab": it is blind. "bca" keeps as many, and is not.
    found = refill(even_plan("xyz", num_lanes=2), candidates(["abc"] * 3, nodes="abc"), num_lanes=2, is_right=any_plan)
    assert found is not None
    assert found.blind
    assert seats(found) == ["abc", "cab"]


def test_where_no_blind_choice_is_left_another_one_is_taken() -> None:
    found = refill(even_plan("xy", num_lanes=2), candidates(["ab", "ab"], nodes="ab"), num_lanes=2, is_right=any_plan)
    assert found is not None
    assert (seats(found), found.blind) == (["ab", "ba"], False)


def test_to_load_a_stage_takes_longer_than_to_compute_again() -> None:
    given = candidates(["ab", "ab", "d"], loaded={2: "cd"})
    found = refill(even_plan("xyz", num_lanes=2), given, num_lanes=2, is_right=any_plan)
    assert {lane[2] for lane in seats(found)} == {"c", "d"}


def test_rules_are_kept() -> None:
    found = refill(
        even_plan("xyz", num_lanes=2),
        candidates(["ab", "bc", "cd"]),
        num_lanes=2,
        is_right=lambda plan: plan.lanes[0].partitions[0].node_id == "d",
    )
    assert seats(found)[0][0] == "d"


@pytest.mark.parametrize(
    ("keeping", "nodes", "why"),
    [
        (["", "", ""], NODES, "nobody keeps anything"),
        (["ab", "ab", "ab"], "ab", "no node sits twice in a lane"),
    ],
)
def test_there_may_be_nothing_to_save(keeping: list[str], nodes: str, why: str) -> None:
    given = candidates(keeping, nodes=nodes)
    assert refill(even_plan("xyz", num_lanes=2), given, num_lanes=2, is_right=any_plan) is None, why


@pytest.mark.parametrize(
    ("keeps", "num_stages"), [([True, True], 0), ([False, True], 1), ([True, False], 2), ([False, False], 2), ([], 0)]
)
def test_rows_go_once_more_as_far_as_the_last_stage_without_them(keeps: list[bool], num_stages: int) -> None:
    assert num_replaying(keeps) == num_stages
