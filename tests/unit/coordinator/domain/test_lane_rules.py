from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from services.coordinator.domain.lane_rules import Guarantee, LaneRules, check_lanes, draw_auditors
from shared.domain.errors import ButterflyError, InvalidPlanInput, VerificationUnavailable
from shared.domain.ids import NodeId
from shared.domain.plan import Lane, Partition, PartitionPlan
from shared.domain.task import Verification
from tests.fakes.identities import N1, N2, N3, N4, N5, capability
from tests.fakes.partitioner import TINY, even_plan

RING = (N1, N2, N3)
NO_WISHES = LaneRules()
PLAN = even_plan(RING, num_lanes=2)


def guarantee(
    plan: PartitionPlan,
    nodes: Sequence[str] = RING,
    *,
    begins: bool = True,
    rules: LaneRules = NO_WISHES,
    verification: Verification = Verification.AUDIT,
    **labels: str,
) -> Guarantee:
    present = {
        NodeId(node): capability(node, labels=(("operator", labels.get(f"n{index}", node)),))
        for index, node in enumerate(nodes, start=1)
    }
    return check_lanes(plan, present, TINY, verification=verification, f=1, begins=begins, rules=rules)


def seen_by_auditor(plan: PartitionPlan) -> PartitionPlan:
    """Lane 1 turned the other way: its node at stage s gets lane 0's rows of stage s."""
    turned = tuple(replace(seat, node_id=NodeId(RING[(seat.stage + 1) % 3])) for seat in plan.lanes[1].partitions)
    return replace(plan, lanes=(plan.lanes[0], Lane(1, turned)), blind=True, spare=9)


def test_what_a_plan_says_of_itself_is_not_believed() -> None:
    assert guarantee(PLAN) == Guarantee(blind=True, spare=1)
    with pytest.raises(InvalidPlanInput, match="C2"):
        guarantee(seen_by_auditor(PLAN))
    assert guarantee(seen_by_auditor(PLAN), begins=False) == Guarantee(blind=False, spare=1)


def test_an_operator_may_want_blind_auditors_always() -> None:
    with pytest.raises(InvalidPlanInput, match="C2"):
        guarantee(seen_by_auditor(PLAN), begins=False, rules=LaneRules(always_blind=True))


def test_a_session_begins_only_where_a_referee_exists() -> None:
    plan = even_plan((N1,))
    audit = Lane(1, tuple(replace(seat, node_id=N2) for seat in plan.lanes[0].partitions))
    plan = replace(plan, lanes=(*plan.lanes, audit))
    with pytest.raises(VerificationUnavailable):
        guarantee(plan, (N1, N2), verification=Verification.AUDIT)
    assert guarantee(plan, (N1, N2), begins=False).spare == 0


def test_two_nodes_of_one_operator_do_not_check_each_other() -> None:
    assert guarantee(PLAN, n1="anna", n2="anna").spare == 1
    with pytest.raises(InvalidPlanInput, match="C1"):
        guarantee(PLAN, n1="anna", n2="anna", rules=LaneRules(spread_by="operator"))


def drawn(plan: PartitionPlan, nodes: Sequence[str], *, seed: int, holds: Sequence[str]) -> PartitionPlan:
    def is_right(plan: PartitionPlan) -> bool:
        try:
            guarantee(plan, nodes)
        except ButterflyError:
            return False
        return True

    def able(_: Partition) -> list[NodeId]:
        return [NodeId(node) for node in holds]

    rng = Random(seed)
    return draw_auditors(plan, able=able, is_right=is_right, shuffled=lambda ids: rng.sample(ids, len(ids)))


def test_auditors_are_drawn_among_those_that_hold_the_stage_and_the_rules_are_kept() -> None:
    nodes = (*RING, N4, N5)
    plans = [drawn(PLAN, nodes, seed=seed, holds=(N4, N5)) for seed in range(30)]
    for plan in plans:
        guarantee(plan, nodes)
        assert plan.lanes[0] == PLAN.lanes[0]
        assert all(len({seat.node_id for seat in lane.partitions}) == 3 for lane in plan.lanes)
    audits = {tuple(seat.node_id for seat in plan.lanes[1].partitions) for plan in plans}
    assert len(audits) > 5
    assert len({plan.plan_id for plan in plans}) == len(audits)


def test_three_nodes_leave_nothing_to_draw() -> None:
    assert drawn(PLAN, RING, seed=1, holds=RING).lanes == PLAN.lanes
