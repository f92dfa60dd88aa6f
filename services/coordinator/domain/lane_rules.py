"""Whether the lanes of a plan are what safety rests on, and who of several nodes audits (verification.md section 4)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from shared.domain.errors import InvalidPlanInput
from shared.domain.ids import NodeId, PlanId
from shared.domain.layers import ModelInfo
from shared.domain.plan import (
    Lane,
    NodeCapability,
    Partition,
    PartitionPlan,
    check_plan,
    check_seats,
    num_holders,
    num_lanes,
    shows_seat,
)
from shared.domain.task import Verification

Nodes = Mapping[NodeId, NodeCapability]


@dataclass(frozen=True, slots=True)
class LaneRules:
    """The operator's wishes about seats."""

    spread_by: str = ""
    """Label in which the nodes of a stage must differ; empty: nodes are enough."""
    always_blind: bool = False
    """C2 also for recoveries and quorums."""


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What the seats have beside safety."""

    blind: bool
    """C2."""
    spare: int
    """Nodes at the stage that has fewest which could hold it, beyond one for each lane."""


def check_lanes(
    plan: PartitionPlan,
    nodes: Nodes,
    model: ModelInfo,
    *,
    verification: Verification,
    f: int,
    begins: bool,
    rules: LaneRules,
) -> Guarantee:
    """What the plan has, whoever made it. `nodes`: those that may take seats; `begins`: the session is admitted with
    this plan, so it needs C2 (an audit) and C3.

    Raises `InvalidPlanInput`, and `VerificationUnavailable` for C3.
    """
    check_plan(plan.lanes, nodes, model)
    wanted = num_lanes(verification, f)
    if len(plan.lanes) < wanted or (len(plan.lanes) > 1 and verification is Verification.NONE):
        raise InvalidPlanInput(f"the task needs {wanted} lanes, the plan has {len(plan.lanes)}", param="plan")
    if verification is Verification.NONE:
        return Guarantee(blind=True, spare=0)
    has_referee = len(plan.lanes) == wanted + 1
    check_seats(
        plan.lanes,
        nodes,
        f,
        model=model,
        spread_by=rules.spread_by,
        with_referee=has_referee,
        blind=rules.always_blind or (begins and verification is Verification.AUDIT),
        spare=begins,
    )
    least = min(num_holders(model, seat, nodes, rules.spread_by) for seat in plan.lanes[0].partitions)
    return Guarantee(
        blind=shows_seat(plan.lanes[:-1] if has_referee else plan.lanes) is None, spare=max(0, least - wanted)
    )


def draw_auditors(
    plan: PartitionPlan,
    *,
    able: Callable[[Partition], Sequence[NodeId]],
    is_right: Callable[[PartitionPlan], bool],
    shuffled: Callable[[Sequence[NodeId]], Sequence[NodeId]],
) -> PartitionPlan:
    """The plan with audit seats drawn anew, so that nobody can know who will check whom.

    `able`: nodes that could take over a seat at once, for example because they hold its stage; `is_right`: whether a
    plan keeps the rules; `shuffled`: a secret order. One seat after the other goes to the first node in that order with
    which the plan is right, its own included: where nobody else holds the stage nothing changes.
    """
    for lane in plan.lanes[1:]:
        for seat in lane.partitions:
            for node_id in shuffled(sorted({*able(seat), seat.node_id})):
                drawn = _with_seat(plan, lane.index, replace(seat, node_id=node_id))
                if node_id == seat.node_id or (_is_spread(drawn.lanes[lane.index]) and is_right(drawn)):
                    plan = drawn
                    break
    return replace(plan, plan_id=reseated_id(plan))


def sits_apart(lanes: Sequence[Lane], pairs: Collection[tuple[NodeId, NodeId]]) -> bool:
    """Whether no pair sits next to each other in a lane, around the ring, in either order."""
    for lane in lanes:
        nodes = [seat.node_id for seat in lane.partitions]
        for sender, receiver in zip(nodes, [*nodes[1:], *nodes[:1]], strict=True):
            if (sender, receiver) in pairs or (receiver, sender) in pairs:
                return False
    return True


def _with_seat(plan: PartitionPlan, lane: int, seat: Partition) -> PartitionPlan:
    seats = tuple(seat if each.stage == seat.stage else each for each in plan.lanes[lane].partitions)
    lanes = tuple(Lane(lane, seats) if each.index == lane else each for each in plan.lanes)
    return replace(plan, lanes=lanes)


def _is_spread(lane: Lane) -> bool:
    """No node sits twice in a lane."""
    return len({seat.node_id for seat in lane.partitions}) == len(lane.partitions)


def reseated_id(plan: PartitionPlan) -> PlanId:
    """Other nodes are another plan: workers batch the sessions of one plan together."""
    text = "\0".join((plan.plan_id, *(seat.node_id for seat in plan.seats)))
    return PlanId(blake2b(text.encode(), digest_size=16, person=b"bfly/drawn/1").hexdigest())
