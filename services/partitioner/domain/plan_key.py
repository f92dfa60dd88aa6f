"""Names of plans and of questions for plans, made from their content."""

import json
from collections.abc import Mapping
from dataclasses import astuple
from hashlib import blake2b

from shared.domain.ids import NodeId, PlanId
from shared.domain.plan import Lane, PlanInput

_ID_BYTES = 16


def plan_key(wanted: PlanInput) -> str:
    """Equal for inputs that differ in nothing but the nodes' speeds: those are compared, see `speeds_alike`.

    The model is named by its root, which stands for all its bytes and so for every figure of its layers.
    """
    nodes = [
        [node.node_id, node.memory_bytes, node.slots, node.context_tokens, *node.kind, node.labels]
        for node in wanted.nodes
    ]
    shape = [wanted.strategy, wanted.num_stages, astuple(wanted.seating)]
    return _hash([wanted.model.model_id, wanted.model.root, shape, nodes])


def plan_id(model_root: str, lanes: tuple[Lane, ...]) -> PlanId:
    """Says what is seated where, and no more: new spares or another strategy leave loaded stages as they are."""
    seats = [
        [lane.index, *([seat.node_id, seat.layers.start, seat.layers.end] for seat in lane.partitions)]
        for lane in lanes
    ]
    return PlanId(_hash([model_root, seats]))


def speeds_of(wanted: PlanInput) -> dict[NodeId, float]:
    return {node.node_id: node.speed for node in wanted.nodes}


def speeds_alike(old: Mapping[NodeId, float], new: Mapping[NodeId, float], threshold: float) -> bool:
    """Whether no node became faster or slower beside the others by the share `threshold` or more.

    Only ratios of speeds matter, so all nodes slowing down alike is no change. `old` are the speeds a plan was made
    from, not those last seen: small steps add up until they count.
    """
    if old == new:
        return True
    if old.keys() != new.keys():
        return False
    changes = [new[node_id] / speed for node_id, speed in old.items()]
    return max(changes) < min(changes) * (1 + threshold)


def _hash(content: object) -> str:
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return blake2b(text.encode(), digest_size=_ID_BYTES).hexdigest()
