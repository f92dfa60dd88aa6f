"""Whether another plan is worth changing to. What is done about it is not decided here."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.partitioner.domain.quality import cut_of
from shared.domain.ids import NodeId
from shared.domain.layers import ModelInfo
from shared.domain.plan import NodeCapability, Objective, PartitionPlan, check_plan


@dataclass(frozen=True, slots=True)
class Advice:
    worth_it: bool
    gain: float
    """Share of the present value of the objective, a time, that the other plan saves; below 0 it is worse."""


def advise(
    present: PartitionPlan,
    other: PartitionPlan,
    model: ModelInfo,
    nodes: Mapping[NodeId, NodeCapability],
    *,
    objective: Objective,
    threshold: float,
) -> Advice:
    """Stay unless the other plan saves more than the share `threshold`; go when a node of the present one has left.

    Raises `InvalidPlanInput` when one of them is no plan of this model, or `other` seats a node that is not there.
    """
    check_plan(other.lanes, nodes, model)
    if any(seat.node_id not in nodes for seat in present.seats):
        return Advice(worth_it=True, gain=1.0)
    check_plan(present.lanes, nodes, model)
    now_s, then_s = (cut_of(plan, model, nodes).value(objective)[0] for plan in (present, other))
    gain = 1 - then_s / now_s if now_s else 0.0
    return Advice(worth_it=gain > threshold, gain=gain)
