"""Names of plans and of questions for plans, made from their content."""

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from hashlib import blake2b

from services.partitioner.domain.placement import decode_bytes_per_s
from shared.domain.ids import NodeId, PlanId
from shared.domain.plan import Lane, PlanInput

_ID_BYTES = 16
_LEAST_RTT_S = 1e-4
"""Below it round trips do not differ."""


def plan_key(wanted: PlanInput) -> str:
    """Equal for inputs that differ in nothing but speeds and links: those are compared, see `figures_alike`.

    The model is named by its root, which stands for all its bytes and so for every figure of its layers.
    """
    nodes = [
        [node.node_id, node.memory_bytes, node.slots, node.context_tokens, *node.kind, node.labels]
        for node in wanted.nodes
    ]
    shape = [wanted.strategy, wanted.objective, wanted.num_stages, astuple(wanted.seating)]
    return _hash([wanted.model.model_id, wanted.model.root, shape, nodes])


def plan_id(model_root: str, lanes: tuple[Lane, ...]) -> PlanId:
    """Says what is seated where, and no more: new spares or another strategy leave loaded stages as they are."""
    seats = [
        [lane.index, *([seat.node_id, seat.layers.start, seat.layers.end] for seat in lane.partitions)]
        for lane in lanes
    ]
    return PlanId(_hash([model_root, seats]))


@dataclass(frozen=True, slots=True)
class Figures:
    """What of the nodes moves from time to time."""

    speeds: Mapping[NodeId, float]
    """Layer-bytes per second."""
    links: Mapping[tuple[NodeId, NodeId, str], float]
    """Round-trip times and seconds per byte, by sender, receiver and which of both."""


def figures_of(wanted: PlanInput) -> Figures:
    links: dict[tuple[NodeId, NodeId, str], float] = {}
    for node in wanted.nodes:
        for link in node.measured.links if node.measured is not None else ():
            links[node.node_id, link.peer, "rtt"] = max(link.rtt_s, _LEAST_RTT_S)
            links[node.node_id, link.peer, "transfer"] = 1 / link.bytes_per_s
    return Figures({node.node_id: decode_bytes_per_s(node) for node in wanted.nodes}, links)


def figures_alike(old: Figures, new: Figures, threshold: float) -> bool:
    """Whether no node became faster or slower beside the others by the share `threshold` or more, and no link at all.

    Of speeds only ratios matter, so all nodes slowing down alike is no change. `old` are the figures a plan was made
    from, not those last seen: small steps add up until they count.
    """
    if old == new:
        return True
    if old.speeds.keys() != new.speeds.keys() or old.links.keys() != new.links.keys():
        return False
    speeds = [new.speeds[node_id] / speed for node_id, speed in old.speeds.items()]
    links = [new.links[way] / figure for way, figure in old.links.items()] or [1.0]
    limit = 1 + threshold
    return max(speeds) < min(speeds) * limit and max(links) < limit and min(links) * limit > 1


def _hash(content: object) -> str:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return blake2b(text.encode(), digest_size=_ID_BYTES).hexdigest()
