"""Which node holds which layers: the partition plan and the rules every plan keeps."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from shared.domain.errors import InvalidPlanInput, VerificationUnavailable
from shared.domain.ids import ModelId, NodeId, PlanId
from shared.domain.layers import ModelInfo, kv_bytes_per_token, stage_weight_bytes
from shared.domain.measured import Measured
from shared.domain.task import Verification


class Objective(StrEnum):
    """What a plan is to be good at."""

    LATENCY = "latency"
    """The time of one token around the ring: all stages and all hops."""
    THROUGHPUT = "throughput"
    """The time of the slowest stage or transfer: it sets the pace once every stage has work."""


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers [start, end)."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


@dataclass(frozen=True, slots=True)
class NodeCapability:
    """What a node can do. Static between measurements, so that equal clusters get equal plans."""

    node_id: NodeId
    memory_bytes: int
    """Memory the worker may use for weights and KV cache."""
    speed: float
    """While decoding, in units of `NOMINAL_DECODE_BYTES_PER_S`. Used where nothing is `measured`."""
    slots: int
    """Sequences each stage of this node holds at once."""
    context_tokens: int
    """Rows each slot holds."""
    host: str = ""
    """Fingerprint of the machine: nodes of one host share its cores."""
    cores: int = 1
    numerics_class: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    kin: str = ""
    """Tells nodes of one class apart whose self-tests differ; the coordinator's word, not the node's."""
    device: str = "cpu"
    """Kind of device that computes."""
    measured: Measured | None = None

    @property
    def machine(self) -> str:
        """A node that does not say on which host it runs is taken for a host of its own."""
        return self.host or f"node:{self.node_id}"

    @property
    def kind(self) -> tuple[str, str]:
        """Nodes of one kind compute the same bits."""
        return self.numerics_class, self.kin


def for_plans(node: NodeCapability) -> NodeCapability:
    """Without the times of single stages: they are most of what is told of a node, and only predictions go by them."""
    measured = node.measured
    return node if measured is None else replace(node, measured=replace(measured, stages=()))


@dataclass(frozen=True, slots=True)
class Partition:
    """A stage seated on a node."""

    stage: int
    node_id: NodeId
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class Lane:
    """One full pipeline. Lane 0 executes, the others audit."""

    index: int
    partitions: tuple[Partition, ...]


@dataclass(frozen=True, slots=True)
class Seating:
    """Which lanes a session needs, and what its seats must keep beside the rules."""

    verification: Verification = Verification.NONE
    max_byzantine: int = 0
    """f: how many nodes of a stage may lie."""
    with_referee: bool = False
    """One audit lane more, the last one, to settle a dispute."""
    referees: tuple[NodeId, ...] = ()
    """Whom the referee's lane should rather have at `disputed_stage`."""
    disputed_stage: int | None = None
    is_recovery: bool = False
    """The session runs already: it goes on without C3, and without C2 where the configuration allows that. What the
    plan keeps of them it says itself."""
    apart: tuple[tuple[NodeId, NodeId], ...] = ()
    """Pairs that must not sit next to each other in a lane, around the ring, in either order."""
    hold: bool = False
    """The answer is held back until fresh nodes have computed it once more: there must be some for every stage."""
    excluded: tuple[tuple[int, NodeId], ...] = ()
    """(stage, node): seats that a node must not have, in any lane."""
    keep: tuple[Lane, ...] = ()
    """Lanes from 0 on that stay as they are, stages included: only the missing ones are sought, and only for them do
    `apart` and `excluded` count."""

    layers: tuple[LayerRange, ...] = ()
    """How the model is to be cut, if the nodes can hold that: what was asked of these stages is asked once more."""

    @property
    def num_lanes(self) -> int:
        return num_lanes(self.verification, self.max_byzantine) + self.with_referee

    @property
    def num_holders(self) -> int:
        """Nodes that must be able to hold each stage, for a session to be admitted: C3, and for an answer that is held
        back one beside all lanes."""
        return max(2 * self.max_byzantine + 1, self.num_lanes + self.hold)


@dataclass(frozen=True, slots=True)
class PlanInput:
    """All that a strategy may look at: equal inputs get equal plans."""

    model: ModelInfo
    nodes: tuple[NodeCapability, ...]
    """In order of node id."""
    strategy: str
    num_stages: int | None = None
    """None: as many as the strategy likes, at most one per node."""
    seating: Seating = Seating()
    objective: Objective = Objective.THROUGHPUT


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    plan_id: PlanId
    model_id: ModelId
    model_root: str
    strategy: str
    lanes: tuple[Lane, ...]
    spares: tuple[tuple[NodeId, ...], ...] = ()
    """Per stage, in order of preference, the nodes that could take a seat there."""
    blind: bool = True
    """Whether no audit lane could sign what it was sent by another lane (C2; the referee lane does not count)."""
    spare: int = 0
    """How many more lanes there are nodes for, at the stage that has fewest."""

    @property
    def seats(self) -> tuple[Partition, ...]:
        """Those of all lanes, lane by lane."""
        return tuple(seat for lane in self.lanes for seat in lane.partitions)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A plan for sessions of its own, beside others of the same model."""

    plan: PartitionPlan
    tokens_per_s: float
    """Verified, as predicted while all pipelines are busy: what a session may expect shrinks with its sessions."""


def num_lanes(verification: Verification, max_byzantine: int) -> int:
    """How many lanes a session of this mode has, a referee's not counted."""
    match verification:
        case Verification.NONE:
            return 1
        case Verification.AUDIT:
            return max_byzantine + 1
        case Verification.QUORUM:
            return 2 * max_byzantine + 1


def failure_domain(node: NodeCapability, spread_by: str) -> tuple[str, str]:
    """What C1 keeps different: the node's label of this name, or the node itself where it has none."""
    for label, value in node.labels:
        if spread_by and label == spread_by:
            return spread_by, value
    return "", node.node_id


def holders(
    model: ModelInfo, layers: LayerRange, nodes: Iterable[NodeCapability], kind: tuple[str, str]
) -> tuple[NodeCapability, ...]:
    """The nodes of this kind that have memory for the stage, with its KV cache for all their slots."""
    return tuple(node for node in nodes if node.kind == kind and _stage_bytes(model, layers, node) <= node.memory_bytes)


def fits_memory(seats: Iterable[Partition], nodes: Mapping[NodeId, NodeCapability], model: ModelInfo) -> bool:
    """Whether every node has memory for all its stages, with their KV caches for all its slots."""
    needed: Counter[NodeId] = Counter()
    for node_id, layers in {(seat.node_id, seat.layers) for seat in seats}:
        needed[node_id] += _stage_bytes(model, layers, nodes[node_id])
    return all(needed[node_id] <= nodes[node_id].memory_bytes for node_id in needed)


def _stage_bytes(model: ModelInfo, layers: LayerRange, node: NodeCapability) -> int:
    kv = kv_bytes_per_token(model, layers.start, layers.end)
    return stage_weight_bytes(model, layers.start, layers.end) + kv * node.slots * node.context_tokens


def check_plan(lanes: Sequence[Lane], nodes: Mapping[NodeId, NodeCapability], model: ModelInfo) -> None:
    """Raise `InvalidPlanInput` unless every lane holds every layer exactly once, in order, on known nodes."""
    for lane in lanes:
        expected = 0
        for position, partition in enumerate(lane.partitions):
            if partition.stage != position:
                raise InvalidPlanInput(f"lane {lane.index}: stage {partition.stage} stands at place {position}")
            if partition.node_id not in nodes:
                raise InvalidPlanInput(f"lane {lane.index}: node {partition.node_id} is not among the given nodes")
            if partition.layers.start != expected or len(partition.layers) < 1:
                raise InvalidPlanInput(
                    f"lane {lane.index}, stage {position}: layers {partition.layers} do not continue at {expected}"
                )
            expected = partition.layers.end
        if expected != model.num_layers:
            raise InvalidPlanInput(f"lane {lane.index} ends at layer {expected} of {model.num_layers}")


def check_seats(
    lanes: Sequence[Lane],
    nodes: Mapping[NodeId, NodeCapability],
    f: int,
    *,
    model: ModelInfo,
    spread_by: str = "",
    with_referee: bool = False,
    blind: bool = True,
    spare: bool = True,
) -> None:
    """Raise unless the seats of a verified session are what safety rests on (verification.md section 4).

    `lanes` have passed `check_plan`. C1: the seats of a stage are on different nodes, and in different failure domains
    where nodes carry the label `spread_by`. C2 (`blind`), see `shows_seat`; `with_referee`: not for the last lane.
    C3 (`spare`): 2f+1 of `nodes` could hold each stage. C4: all seats share a numerics class and kin.

    Raises `VerificationUnavailable` for C3, where other nodes would help, and else `InvalidPlanInput`.
    """
    if len(lanes) < f + 1:
        raise InvalidPlanInput(f"{f + 1} lanes must agree, the plan has {len(lanes)}", param="plan")
    for stage, seats in enumerate(zip(*(lane.partitions for lane in lanes), strict=False)):
        _check_stage(stage, seats, nodes, spread_by, nodes[lanes[0].partitions[0].node_id].kind)
    if any(len(lane.partitions) != len(lanes[0].partitions) for lane in lanes):
        raise InvalidPlanInput("the lanes have different numbers of stages", param="plan")
    shown = shows_seat(lanes[:-1] if with_referee else lanes) if blind else None
    if shown is not None:
        raise InvalidPlanInput(
            f"lane {shown.lane} is not blind: at stage {shown.stage} it has the node {shown.node_id}, which is sent"
            f" what lane {shown.sender} computes there (C2)",
            param="plan",
        )
    if spare:
        for seat in lanes[0].partitions:
            found = num_holders(model, seat, nodes, spread_by)
            if found < 2 * f + 1:
                raise VerificationUnavailable(
                    f"f = {f} needs {2 * f + 1} nodes that could hold stage {seat.stage} (layers {seat.layers}), so"
                    f" that a referee exists; {found} are present (C3)"
                )


@dataclass(frozen=True, slots=True)
class ShownSeat:
    """A seat whose node gets the answer from another lane."""

    lane: int
    stage: int
    node_id: NodeId
    sender: int
    """The lane whose rows the node receives, sitting one stage later there."""


def shows_seat(lanes: Sequence[Lane]) -> ShownSeat | None:
    """The first breach of C2, or None: seat(l, s) is not seat(m, s+1) for any audit lane l and any other lane m.

    Lane 0 may sit there: it signs first. The ring's way back needs no rule: what it carries holds no logits.
    """
    for lane in lanes[1:]:
        for other in lanes:
            if other.index == lane.index:
                continue
            for seat, receiver in zip(lane.partitions, other.partitions[1:], strict=False):
                if seat.node_id == receiver.node_id:
                    return ShownSeat(lane.index, seat.stage, seat.node_id, other.index)
    return None


def num_holders(model: ModelInfo, seat: Partition, nodes: Mapping[NodeId, NodeCapability], spread_by: str) -> int:
    """Failure domains with a node that could hold this stage, of the kind of the node seated there."""
    found = holders(model, seat.layers, nodes.values(), nodes[seat.node_id].kind)
    return len({failure_domain(node, spread_by) for node in found})


def _check_stage(
    stage: int,
    seats: Sequence[Partition],
    nodes: Mapping[NodeId, NodeCapability],
    spread_by: str,
    kind: tuple[str, str],
) -> None:
    seen: dict[tuple[str, str], int] = {}
    for lane, seat in enumerate(seats):
        if seat.layers != seats[0].layers:
            raise InvalidPlanInput(
                f"stage {stage} has layers {seats[0].layers} in lane 0 and {seat.layers} in lane {lane}", param="plan"
            )
        node = nodes[seat.node_id]
        domain = failure_domain(node, spread_by)
        if domain in seen:
            what = f"{domain[0]} {domain[1]!r}" if domain[0] else f"node {domain[1]}"
            raise InvalidPlanInput(
                f"stage {stage}: lanes {seen[domain]} and {lane} are both on the {what} (C1)", param="plan"
            )
        seen[domain] = lane
        if node.kind != kind:
            raise InvalidPlanInput(
                f"stage {stage} of lane {lane} computes as {_told(node.kind)}, stage 0 of lane 0 as {_told(kind)} (C4)",
                param="plan",
            )


def _told(kind: tuple[str, str]) -> str:
    numerics_class, kin = kind
    return f"{numerics_class!r} ({kin})" if kin else repr(numerics_class)
