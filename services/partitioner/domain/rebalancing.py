"""Whether other plans are worth changing to, and when new sessions change to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.partitioner.domain.prediction import rates_together
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
    gain = _gain(now_s, then_s)
    return Advice(worth_it=gain > threshold, gain=gain)


def advise_pipelines(
    present: Sequence[PartitionPlan],
    other: Sequence[PartitionPlan],
    model: ModelInfo,
    nodes: Mapping[NodeId, NodeCapability],
    *,
    objective: Objective,
    threshold: float,
) -> Advice:
    """The same for all pipelines of a model, whose nodes are all there: by the time between verified tokens of all
    together, and for `LATENCY` by that of one token around the fastest ring, unless that stays about the same."""
    gain = _gain(*(1 / sum(rates_together(plans, model, nodes)) for plans in (present, other)))
    if objective is Objective.LATENCY:
        faster = _gain(*(min(cut_of(plan, model, nodes).token_s for plan in plans) for plans in (present, other)))
        gain = faster if abs(faster) > threshold else gain
    return Advice(worth_it=gain > threshold, gain=gain)


class Rebalancing(StrEnum):
    """What is done about advice."""

    ALWAYS = "always"
    """New sessions go by whatever is best for the nodes as they are."""
    ADVISED = "advised"
    """They stay with the pipelines in use until others are worth it."""
    NEVER = "never"
    """They stay as long as there is any pipeline in use whose nodes are there."""


class Reason(StrEnum):
    """Why the pipelines changed."""

    NODES = "nodes"
    """None of the former ones has all its nodes, or a referee, any more."""
    GAIN = "gain"
    """The new ones are better by more than the threshold."""
    FRESH = "fresh"
    """The configuration wants the best for each moment."""


@dataclass(frozen=True, slots=True)
class Terms:
    rule: Rebalancing
    threshold: float
    """Share of the present time that other pipelines must save."""
    least_s: float
    """Between two changes for the better."""


def reason_to_change(advice: Advice | None, *, in_use_s: float, terms: Terms) -> Reason | None:
    """Whether new sessions leave the pipelines in use for others; None: they stay. `advice`: on that change, counting
    of those in use only what can be used still; None: nothing. `in_use_s`: since the last change.

    A loss is answered at once, a gain only after `least_s`: nodes that come and go must not have layers moved about
    each time.
    """
    if terms.rule is Rebalancing.ALWAYS:
        return Reason.FRESH
    if advice is None:
        return Reason.NODES
    if terms.rule is Rebalancing.ADVISED and advice.worth_it and in_use_s >= terms.least_s:
        return Reason.GAIN
    return None


def _gain(now_s: float, then_s: float) -> float:
    return 1 - then_s / now_s if now_s else 0.0
