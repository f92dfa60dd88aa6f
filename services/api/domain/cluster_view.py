"""Nodes and models as clients see them. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence

from shared.contracts.coordinator import NodeView
from shared.domain.layers import ModelInfo, seat_bytes, stage_weight_bytes
from shared.domain.numerics import Profile, weakest
from shared.domain.session import NodeState
from shared.domain.task import Verification

Json = dict[str, object]
Part = tuple[ModelInfo, int, int]
"""Layers [start, end) of a model."""
MEBIBYTE = 1024 * 1024

LEAST_TO_VERIFY = 3  # 2f + 1 with f = 1


def node_resources(nodes: Sequence[NodeView], models: Iterable[ModelInfo]) -> list[Json]:
    """`models`: the catalogue, as far as it is known."""
    parts = wanted_parts(nodes, models)
    return [_node_resource(node, node.reason or why_idle(node, parts)) for node in nodes]


def _node_resource(node: NodeView, reason: str | None) -> Json:
    capability = node.capability
    return {
        "node_id": node.node_id,
        "state": node.state,
        "address": node.address,
        "incarnation": node.boot_id,
        "capability": {
            "memory_bytes": capability.memory_bytes,
            "speed": capability.speed,
            "is_measured": capability.measured is not None,
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
        "links": [
            {"node_id": link.peer, "rtt_ms": link.rtt_s * 1000, "bytes_per_s": link.bytes_per_s}
            for link in (capability.measured.links if capability.measured is not None else ())
        ],
        "heartbeat_age_ms": node.heartbeat_age_ms,
        "load": {"slots_used": node.slots_used, "slots": capability.slots},
        "reason": reason,
    }


def wanted_parts(nodes: Iterable[NodeView], models: Iterable[ModelInfo]) -> list[Part]:
    """What a node must be able to hold one of: the stages that are held now, or, when none is, single layers."""
    by_id = {model.model_id: model for model in models}
    held = {(seat.model, seat.start, seat.end) for node in nodes for seat in node.stages if seat.model in by_id}
    if held:
        return [(by_id[model_id], start, end) for model_id, start, end in sorted(held)]
    return [part for model in by_id.values() for part in _smallest_parts(model)]


def why_idle(node: NodeView, parts: Sequence[Part]) -> str | None:
    """Why a node holds no layers, where waiting will not change it: it is smaller than each of `parts`."""
    if node.stages or not parts:
        return None
    capability = node.capability
    rows = capability.slots * capability.context_tokens
    least_bytes, place = min((seat_bytes(*part, rows=rows), place) for place, part in enumerate(parts))
    if least_bytes <= capability.memory_bytes:
        return None
    model, start, end = parts[place]
    return (
        f"too small: it offers {capability.memory_bytes // MEBIBYTE} MiB, and {model.model_id} {start}-{end} needs"
        f" {-(-least_bytes // MEBIBYTE)} MiB with {capability.slots} slots of {capability.context_tokens} tokens"
    )


def _smallest_parts(model: ModelInfo) -> list[Part]:
    length = 1 if model.splittable else model.num_layers
    return [(model, start, start + length) for start in range(model.num_layers - length + 1)]


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
            "profile": profile_of(model, nodes),
            "verification": list(modes(nodes)),
            "ready": can_be_held(model, nodes),
        },
    }


def profile_of(model: ModelInfo, nodes: Iterable[NodeView]) -> Profile | None:
    """The weakest that a node tells of a stage of the model; None before any has loaded one."""
    told = [seat.profile for node in nodes for seat in node.stages if seat.model == model.model_id and seat.profile]
    return weakest(told) if told else None


def modes(nodes: Iterable[NodeView]) -> tuple[Verification, ...]:
    """What can be asked for now: a liar is found out by three nodes that compute alike."""
    ready = [node.capability.kind for node in nodes if node.state is NodeState.READY]
    most_alike = max(Counter(ready).values(), default=0)
    return tuple(Verification) if most_alike >= LEAST_TO_VERIFY else (Verification.NONE,)


def can_be_held(model: ModelInfo, nodes: Iterable[NodeView]) -> bool:
    """Whether the weights fit into the ready nodes at all: the least that any plan needs."""
    rooms = [node.capability.memory_bytes for node in nodes if node.state is NodeState.READY]
    room = sum(rooms) if model.splittable else max(rooms, default=0)
    return room >= stage_weight_bytes(model, 0, model.num_layers)
