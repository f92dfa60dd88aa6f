"""From a question to a plan: how many stages, lane 0 by the strategy, the other lanes, spares."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise

from services.partitioner.domain.input_checks import check_input
from services.partitioner.domain.lanes import free_memory, seat_lanes, seated_at
from services.partitioner.domain.placement import ModelSums, SeatRoom, rooms_of, sums_of
from services.partitioner.domain.plan_key import plan_id
from services.partitioner.domain.strategies.base import Strategy
from services.partitioner.domain.strategies.uniform import even_ends
from shared.domain.errors import InvalidPlanInput, NoCapacity, VerificationUnavailable
from shared.domain.ids import NodeId
from shared.domain.numerics import Profile
from shared.domain.plan import (
    Lane,
    LayerRange,
    Partition,
    PartitionPlan,
    PlanInput,
    Seating,
    check_plan,
    check_seats,
    failure_domain,
    num_holders,
    shows_seat,
)
from shared.domain.task import Verification

DEFAULT_STAGES = 3
"""Each stage costs a hop per token, so few are better; three show the cut and leave spares on small clusters."""
MAX_SPARES = 8
"""Per stage: more than are ever asked in turn, and few enough for plans over a thousand nodes."""
_MAX_KINDS = 4  # of nodes that compute alike, the largest
_MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class SeatRules:
    """The operator's wishes about seats."""

    spread_by: str = ""
    """Label in which the nodes of a stage must differ; empty: nodes are enough."""
    always_blind: bool = False
    """Keep C2 in recoveries and quorums as well, even if they must wait for nodes."""


DEFAULT_RULES = SeatRules()


def make_plan(
    wanted: PlanInput,
    strategy: Strategy,
    *,
    preferred_stages: int | None = None,
    rules: SeatRules = DEFAULT_RULES,
    among: Collection[NodeId] | None = None,
) -> PartitionPlan:
    """Lane 0 by the strategy, the other lanes over the same stages on other nodes.

    `among`: the nodes that get seats, None: any; the others count as spares all the same.

    `wanted.num_stages` is kept to; without it there are `preferred_stages`, or as many as there are nodes that can
    hold a layer if those are fewer. None of both leaves it to the strategy, or there are `DEFAULT_STAGES`. More when
    the model does not fit else, and fewer when even that does not help (one roomy node among small ones). Where lane 0
    leaves no seats for the others, its nodes are chosen anew, and the model is cut for smaller memories.

    C1 and C4 always hold. An audit that begins has C2 and C3 too, a quorum that begins C3: its lanes all decode, so C2
    is kept where possible. A recovery has both where possible, with `rules.always_blind` C2 always.

    Raises `NoCapacity` when the nodes are too few or too small for one lane, saying how much is missing, and
    `VerificationUnavailable` when they cannot seat the lanes of a verified session, saying how many it takes;
    `InvalidPlanInput` for impossible figures and for a layer larger than every node; `UnsupportedModel` when stages
    are asked of a model that runs whole only.
    """
    check_input(wanted)
    _check_enough(wanted, rules)
    sums = sums_of(wanted.model)
    all_rooms = rooms_of(sums, wanted.nodes)
    rooms = [room for room in all_rooms if among is None or room.node.node_id in among]
    _check_layers(sums, rooms)
    if wanted.seating.keep:
        lanes = _kept(wanted, rooms, rules)
    else:
        lanes = _sought(wanted, strategy, sums, rooms, preferred_stages, rules)
    blind = shows_seat(lanes[:-1] if wanted.seating.with_referee else lanes) is None
    nodes = {node.node_id: node for node in wanted.nodes}
    check_plan(lanes, nodes, wanted.model)
    spare = 0
    if wanted.seating.verification is not Verification.NONE:
        spare = max(0, _least_holders(wanted, lanes, rules) - len(lanes))
        check_seats(
            lanes,
            nodes,
            wanted.seating.max_byzantine,
            model=wanted.model,
            spread_by=rules.spread_by,
            with_referee=wanted.seating.with_referee,
            blind=blind,
            spare=not wanted.seating.is_recovery,
        )
    return PartitionPlan(
        plan_id=plan_id(wanted.model.root, lanes),
        model_id=wanted.model.model_id,
        model_root=wanted.model.root,
        strategy=wanted.strategy,
        lanes=lanes,
        spares=spares_of(lanes, all_rooms),
        blind=blind,
        spare=spare,
    )


def spares_of(lanes: Sequence[Lane], rooms: Sequence[SeatRoom]) -> tuple[tuple[NodeId, ...], ...]:
    """Per stage the nodes without a seat in it that have memory for it beside their other seats, and are of its class.

    At most `MAX_SPARES`: those without any seat first, then the fastest, then by id. With one lane only nodes without
    a seat: a ring gains nothing from a second stage on one of its nodes.
    """
    seats = [seat for lane in lanes for seat in lane.partitions]
    seated = {seat.node_id for seat in seats}
    kinds = {room.node.node_id: room.node.kind for room in rooms}
    able = [room for room in rooms if len(lanes) > 1 or room.node.node_id not in seated]
    able.sort(key=lambda room: (room.node.node_id in seated, -room.speed, room.node.node_id))
    free = {room.node.node_id: free_memory(room, seats) for room in able}

    def could_hold(room: SeatRoom, seat: Partition) -> bool:
        node_id = room.node.node_id
        return (
            node_id not in seated_at(lanes, seat.stage)
            and kinds[node_id] == kinds[seat.node_id]
            and room.memory_bytes(seat.layers.start, seat.layers.end) <= free[node_id]
        )

    return tuple(
        tuple(islice((room.node.node_id for room in able if could_hold(room, seat)), MAX_SPARES))
        for seat in lanes[0].partitions
    )


def _sought(
    wanted: PlanInput,
    strategy: Strategy,
    sums: ModelSums,
    rooms: Sequence[SeatRoom],
    preferred_stages: int | None,
    rules: SeatRules,
) -> tuple[Lane, ...]:
    for num_stages in _stage_counts(wanted, strategy, rooms, preferred_stages):
        for blind in _degrees(wanted, rules):
            for layers, fixed in _starts(wanted, strategy, rooms, num_stages):
                lanes = seat_lanes(layers, rooms, wanted.seating, fixed=fixed, blind=blind, spread_by=rules.spread_by)
                if lanes is not None and has_spares(wanted, lanes, rules):
                    return lanes
    if wanted.seating.verification is Verification.NONE:
        raise _no_capacity(wanted, sums, rooms)
    raise _cannot_verify(wanted, rules)


def _kept(wanted: PlanInput, rooms: Sequence[SeatRoom], rules: SeatRules) -> tuple[Lane, ...]:
    keep = wanted.seating.keep
    layers = [seat.layers for seat in keep[0].partitions]
    for blind in _degrees(wanted, rules):
        lanes = seat_lanes(layers, rooms, wanted.seating, fixed=keep, blind=blind, spread_by=rules.spread_by)
        if lanes is not None and has_spares(wanted, lanes, rules):
            return lanes
    raise _cannot_verify(wanted, rules)


_Start = tuple[Sequence[LayerRange], tuple[Lane, ...]]
"""Stages, and lane 0 if it is settled."""


def _starts(
    wanted: PlanInput, strategy: Strategy, rooms: Sequence[SeatRoom], num_stages: int | None
) -> Iterator[_Start]:
    """What to build lanes on, best first: the stages that were asked for; the strategy's own lane 0; one of a single
    class, or cut for nodes that hold several stages; then the same stages with lane 0 on any nodes."""
    num_layers, seating = wanted.model.num_layers, wanted.seating
    if len(seating.layers) == num_stages:
        yield seating.layers, ()
    cuts: dict[tuple[LayerRange, ...], None] = {}
    for some in _choices_of_rooms(rooms, num_stages, seating):
        seats = strategy.seat(some, num_layers, num_stages, wanted.objective)
        if seats is not None:
            layers = tuple(seat.layers for seat in seats)
            cuts[layers] = None
            yield layers, (Lane(0, seats),)
    if seating != Seating() and num_stages is not None and num_stages <= num_layers:
        ends = even_ends(num_layers, num_stages)
        cuts[tuple(LayerRange(start, end) for start, end in pairwise((0, *ends)))] = None
        for layers in cuts:
            yield layers, ()


def _choices_of_rooms(
    rooms: Sequence[SeatRoom], num_stages: int | None, seating: Seating
) -> Iterator[Sequence[SeatRoom]]:
    yield rooms
    if seating.num_lanes == 1:
        return
    by_kind: dict[tuple[str, str], list[SeatRoom]] = {}
    for room in rooms:
        by_kind.setdefault(room.node.kind, []).append(room)
    if len(by_kind) > 1:
        yield from sorted(by_kind.values(), key=len, reverse=True)[:_MAX_KINDS]
    stages_per_node = -(-seating.num_lanes * (num_stages or 1) // len(rooms))
    if stages_per_node > 1:
        yield [
            replace(room, node=replace(room.node, memory_bytes=room.node.memory_bytes // stages_per_node))
            for room in rooms
        ]


def _degrees(wanted: PlanInput, rules: SeatRules) -> tuple[bool, ...]:
    """Whether to keep C2: first try, second try."""
    seating = wanted.seating
    if seating.num_lanes == 1:
        return (False,)
    if rules.always_blind or (seating.verification is Verification.AUDIT and not seating.is_recovery):
        return (True,)
    return True, False


def has_spares(wanted: PlanInput, lanes: Sequence[Lane], rules: SeatRules) -> bool:
    """C3, and fresh nodes, where they are asked for."""
    seating = wanted.seating
    if seating.verification is Verification.NONE or seating.is_recovery:
        return True
    return _least_holders(wanted, lanes, rules) >= seating.num_holders


def _least_holders(wanted: PlanInput, lanes: Sequence[Lane], rules: SeatRules) -> int:
    nodes = {node.node_id: node for node in wanted.nodes}
    return min(num_holders(wanted.model, seat, nodes, rules.spread_by) for seat in lanes[0].partitions)


def _check_enough(wanted: PlanInput, rules: SeatRules) -> None:
    """Refuse at once what no placement can give."""
    if wanted.seating.verification is Verification.NONE:
        return
    if _num_present(wanted, rules) < _num_needed(wanted):
        raise _cannot_verify(wanted, rules)


def _num_needed(wanted: PlanInput) -> int:
    """Nodes of one class that must be there: C3 and fresh ones, or C1 for a recovery."""
    seating = wanted.seating
    return seating.num_lanes if seating.is_recovery else seating.num_holders


def _num_present(wanted: PlanInput, rules: SeatRules) -> int:
    """Failure domains of the kind that has most of them."""
    domains: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for node in wanted.nodes:
        domains.setdefault(node.kind, set()).add(failure_domain(node, rules.spread_by))
    return max(map(len, domains.values()), default=0)


def _cannot_verify(wanted: PlanInput, rules: SeatRules) -> VerificationUnavailable:
    seating, needed, present = wanted.seating, _num_needed(wanted), _num_present(wanted, rules)
    spread = f" with different {rules.spread_by}" if rules.spread_by else ""
    held = " and hold" if seating.hold else ""
    what = f"{seating.verification} with max_byzantine {seating.max_byzantine}{held}"
    what = f"{what} needs {needed} nodes of one numerics class{spread}"
    if present < needed:
        what = f"{what}; {present} of the {len(wanted.nodes)} that are present share one"
        if present < len(wanted.nodes):
            what = f"{what}, and nodes of different classes are at best '{Profile.TOLERANT}', which is not verified"
        return VerificationUnavailable(what)
    return VerificationUnavailable(
        f"{what} that can hold each stage, and seats for {seating.num_lanes} lanes that keep to the rules; {present}"
        f" are present, but have no room for these lanes of {wanted.model.model_id}"
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


def _stage_counts(
    wanted: PlanInput, strategy: Strategy, rooms: Sequence[SeatRoom], preferred: int | None
) -> Iterator[int | None]:
    """The numbers of stages to try, in order; None: what the strategy chooses."""
    if wanted.num_stages is not None:
        yield wanted.num_stages
        return
    num_layers = wanted.model.num_layers
    if not wanted.model.splittable:
        yield 1
        return
    fewest = _fewest_stages(rooms, num_layers)
    usable = sum(any(room.holds(layer, layer + 1) for layer in range(num_layers)) for room in rooms)
    most = min(usable, num_layers)
    if preferred is None and strategy.chooses_stages:
        yield None
    first = min(preferred or DEFAULT_STAGES, most)
    yield from range(max(1, first, fewest), most + 1)
    yield from range(first - 1, fewest - 1, -1)


def _fewest_stages(rooms: Sequence[SeatRoom], num_layers: int) -> int:
    """With fewer, even the roomiest nodes have too little memory together."""
    needed = min(room.memory_bytes(0, num_layers) for room in rooms)
    roomiest = sorted((room.node.memory_bytes for room in rooms), reverse=True)
    return next((count for count, held in enumerate(accumulate(roomiest), 1) if held >= needed), len(rooms) + 1)


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
