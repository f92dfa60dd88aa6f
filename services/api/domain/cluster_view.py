"""Nodes and models as clients see them. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence

from shared.contracts.coordinator import NodeView
from shared.domain.layers import ModelInfo, stage_weight_bytes
from shared.domain.session import NodeState
from shared.domain.task import Verification

Json = dict[str, object]

LEAST_TO_VERIFY = 3  # 2f + 1 with f = 1


def node_resource(node: NodeView) -> Json:
    capability = node.capability
    return {
        "node_id": node.node_id,
        "state": node.state,
        "address": node.address,
        "incarnation": node.boot_id,
        "capability": {
            "memory_bytes": capability.memory_bytes,
            "speed": capability.speed,
            "slots": capability.slots,
            "context_tokens": capability.context_tokens,
            "host": capability.host,
            "cores": capability.cores,
            "labels": dict(capability.labels),
        },
        "numerics_class": capability.numerics_class,
        "stages": [
            {"model": seat.model, "start": seat.start, "end": seat.end, "lane": seat.lane} for seat in node.stages
        ],
        "heartbeat_age_ms": node.heartbeat_age_ms,
        "load": {"slots_used": node.slots_used, "slots": capability.slots},
        "reason": node.reason or None,
    }


def model_resource(model: ModelInfo, nodes: Sequence[NodeView], *, context_tokens: int) -> Json:
    """`context_tokens`: rows that each slot of the cluster holds."""
    return {
        "id": model.model_id,
        "object": "model",
        "created": model.created_s,
        "owned_by": "butterfly",
        "butterfly": {
            "layers": model.num_layers,
            "context": min(model.context_tokens, context_tokens),
            "bytes": model.file_bytes,
            "profile": "exact",
            "verification": list(modes(nodes)),
            "ready": can_be_held(model, nodes),
        },
    }


def modes(nodes: Iterable[NodeView]) -> tuple[Verification, ...]:
    """What can be asked for now: a liar is found out by three nodes that compute alike."""
    ready = [node.capability.numerics_class for node in nodes if node.state is NodeState.READY]
    most_alike = max(Counter(ready).values(), default=0)
    return tuple(Verification) if most_alike >= LEAST_TO_VERIFY else (Verification.NONE,)


def can_be_held(model: ModelInfo, nodes: Iterable[NodeView]) -> bool:
    """Whether the weights fit into the ready nodes at all: the least that any plan needs."""
    rooms = [node.capability.memory_bytes for node in nodes if node.state is NodeState.READY]
    room = sum(rooms) if model.splittable else max(rooms, default=0)
    return room >= stage_weight_bytes(model, 0, model.num_layers)
