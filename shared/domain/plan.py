"""Which node holds which layers: the partition plan and the rules every plan keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.domain.errors import InvalidPlanInput
from shared.domain.ids import ModelId, NodeId, PlanId
from shared.domain.layers import ModelInfo


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
    """FLOPs per second while decoding, relative: only ratios between nodes matter."""
    slots: int
    """Sequences each stage of this node holds at once."""
    context_tokens: int
    """Rows each slot holds."""
    host: str = ""
    """Fingerprint of the machine: nodes of one host share its cores."""
    cores: int = 1
    numerics_class: str = ""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PlanInput:
    """All that a strategy may look at: equal inputs get equal plans."""

    model: ModelInfo
    nodes: tuple[NodeCapability, ...]
    """In order of node id."""
    strategy: str
    num_stages: int | None = None
    """None: as many as the strategy likes, at most one per node."""
    num_lanes: int = 1


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
class PartitionPlan:
    plan_id: PlanId
    model_id: ModelId
    model_root: str
    strategy: str
    lanes: tuple[Lane, ...]
    spares: tuple[tuple[NodeId, ...], ...] = ()
    """Per stage, in order of preference, the nodes that could take a seat there."""


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
