"""From a question to a plan: how many stages, seats by the strategy, spares."""

import math
from collections.abc import Iterator, Sequence

from services.partitioner.domain.placement import ModelSums, SeatRoom, rooms_of, sums_of
from services.partitioner.domain.plan_key import plan_id
from services.partitioner.domain.strategies.base import Strategy
from shared.domain.errors import InvalidPlanInput, NoCapacity, UnsupportedModel, VerificationUnavailable
from shared.domain.ids import NodeId
from shared.domain.plan import Lane, NodeCapability, Partition, PartitionPlan, PlanInput, check_plan

DEFAULT_STAGES = 3
"""Each stage costs a hop per token, so few are better; three show the cut and leave spares on small clusters."""
MAX_SPARES = 8
"""Per stage: more than are ever asked in turn, and few enough for plans over a thousand nodes."""
_MEBIBYTE = 1 << 20


def make_plan(wanted: PlanInput, strategy: Strategy, *, preferred_stages: int = DEFAULT_STAGES) -> PartitionPlan:
    """The plan for one lane.

    `wanted.num_stages` is kept to; without it there are `preferred_stages`, or as many as there are nodes that can
    hold a layer if those are fewer. More when the model does not fit else, and fewer when even that does not help
    (one roomy node among small ones).

    Raises `NoCapacity` when the nodes are too few or too small, saying how much is missing; `InvalidPlanInput` for
    impossible figures and for a layer larger than every node; `UnsupportedModel` when stages are asked of a model
    that runs whole only; `VerificationUnavailable` for more than one lane.
    """
    check_input(wanted)
    sums = sums_of(wanted.model)
    rooms = rooms_of(sums, wanted.nodes)
    _check_layers(sums, rooms)
    seats = None
    for num_stages in _stage_counts(wanted, rooms, preferred_stages):
        seats = strategy.seat(rooms, sums.num_layers, num_stages)
        if seats is not None:
            break
    if seats is None:
        raise _no_capacity(wanted, sums, rooms)
    lanes = (Lane(0, seats),)
    check_plan(lanes, {node.node_id: node for node in wanted.nodes}, wanted.model)
    return PartitionPlan(
        plan_id=plan_id(wanted.model.root, lanes),
        model_id=wanted.model.model_id,
        model_root=wanted.model.root,
        strategy=wanted.strategy,
        lanes=lanes,
        spares=spares_of(seats, rooms),
    )


def spares_of(seats: Sequence[Partition], rooms: Sequence[SeatRoom]) -> tuple[tuple[NodeId, ...], ...]:
    """Per stage the nodes without a seat that could hold it, fastest first, then by id; at most `MAX_SPARES`."""
    seated = {seat.node_id for seat in seats}
    free = [room for room in rooms if room.node.node_id not in seated]
    free.sort(key=lambda room: (-room.node.speed, room.node.node_id))
    return tuple(
        tuple(room.node.node_id for room in free if room.holds(seat.layers.start, seat.layers.end))[:MAX_SPARES]
        for seat in seats
    )


def check_input(wanted: PlanInput) -> None:
    """Raise the error that `make_plan` names unless the question makes sense."""
    if wanted.num_lanes < 1:
        raise InvalidPlanInput(f"{wanted.num_lanes} lanes are none", param="num_lanes")
    if wanted.num_lanes > 1:
        raise VerificationUnavailable("this build verifies nothing yet: plans have one lane")
    _check_stages(wanted)
    seen: set[NodeId] = set()
    for node in wanted.nodes:
        if node.node_id in seen:
            raise InvalidPlanInput(f"the node {node.node_id} is given twice", param="nodes")
        seen.add(node.node_id)
        _check_node(node)
    if not wanted.nodes:
        raise NoCapacity("no node is ready")


def _check_stages(wanted: PlanInput) -> None:
    model, num_stages = wanted.model, wanted.num_stages
    if not model.layers:
        raise InvalidPlanInput(f"the model {model.model_id} has no layers", param="model")
    if num_stages is None:
        return
    if not 1 <= num_stages <= model.num_layers:
        raise InvalidPlanInput(
            f"{num_stages} stages cannot be made of the {model.num_layers} layers of {model.model_id}",
            param="num_stages",
        )
    if num_stages > 1 and not model.splittable:
        raise UnsupportedModel(f"{model.model_id} cannot be cut into {num_stages} stages: {model.reason}")


def _check_node(node: NodeCapability) -> None:
    if not math.isfinite(node.speed) or node.speed <= 0:
        raise InvalidPlanInput(f"the node {node.node_id} has the speed {node.speed}: it must be above 0", param="nodes")
    if node.memory_bytes < 0 or node.slots < 1 or node.context_tokens < 1:
        raise InvalidPlanInput(
            f"the node {node.node_id} claims {node.memory_bytes} bytes, {node.slots} slots of {node.context_tokens} "
            "tokens: memory must not be below 0, the others not below 1",
            param="nodes",
        )


def _check_layers(sums: ModelSums, rooms: Sequence[SeatRoom]) -> None:
    """A layer cannot be cut, so waiting for more nodes like these would not help. The ends' extras do not count here:
    they are told as missing capacity."""
    largest = max(range(sums.num_layers), key=lambda layer: _bare_layer_bytes(sums, rooms[0], layer))
    if all(_bare_layer_bytes(sums, room, largest) > room.node.memory_bytes for room in rooms):
        raise InvalidPlanInput(
            f"layer {largest} needs {_mib(_bare_layer_bytes(sums, rooms[0], largest))} with its KV cache, more than "
            f"any of the {len(rooms)} nodes has ({_mib(max(room.node.memory_bytes for room in rooms))})",
            param="nodes",
        )


def _bare_layer_bytes(sums: ModelSums, room: SeatRoom, layer: int) -> int:
    """Weights and KV cache of one layer, without embedding and head."""
    kv = sums.kv_bytes_per_token[layer + 1] - sums.kv_bytes_per_token[layer]
    return sums.layer_bytes[layer] + kv * room.node.slots * room.node.context_tokens


def _stage_counts(wanted: PlanInput, rooms: Sequence[SeatRoom], preferred: int) -> Iterator[int]:
    """The numbers of stages to try, in order."""
    if wanted.num_stages is not None:
        yield wanted.num_stages
        return
    num_layers = wanted.model.num_layers
    if not wanted.model.splittable:
        yield 1
        return
    usable = sum(any(room.holds(layer, layer + 1) for layer in range(num_layers)) for room in rooms)
    most = min(usable, num_layers)
    first = min(preferred, most)
    yield from range(max(1, first), most + 1)
    yield from range(first - 1, 0, -1)


def _no_capacity(wanted: PlanInput, sums: ModelSums, rooms: Sequence[SeatRoom]) -> NoCapacity:
    model, nodes = wanted.model, wanted.nodes
    if wanted.num_stages is not None and wanted.num_stages > len(nodes):
        return NoCapacity(f"{wanted.num_stages} stages need as many nodes; {len(nodes)} are ready")
    needed = min(room.memory_bytes(0, sums.num_layers) for room in rooms)
    if not model.splittable:
        largest = max(node.memory_bytes for node in nodes)
        return NoCapacity(
            f"{model.model_id} needs {_mib(needed)} on one node ({model.reason}); the largest has {_mib(largest)}: "
            f"{_mib(needed - largest)} are missing"
        )
    offered = sum(sorted((node.memory_bytes for node in nodes), reverse=True)[: wanted.num_stages or len(nodes)])
    if offered < needed:
        return NoCapacity(
            f"{model.model_id} needs {_mib(needed)} with its KV cache; the nodes offer {_mib(offered)}: "
            f"{_mib(needed - offered)} are missing"
        )
    return NoCapacity(
        f"{model.model_id} needs {_mib(needed)} with its KV cache and the nodes offer {_mib(offered)}, but layers "
        "cannot be divided among them so that each part fits: some node must have more memory"
    )


def _mib(size_bytes: int) -> str:
    return f"{-(-size_bytes // _MEBIBYTE)} MiB"
