"""Rates a plan: how even it is, what holds it up, what it sends over the network."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.partitioner.domain.placement import rooms_of, sums_of
from shared.domain.errors import InvalidPlanInput
from shared.domain.ids import NodeId
from shared.domain.layers import ModelInfo
from shared.domain.plan import NodeCapability, PartitionPlan, check_plan

_TOKEN_ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class StageQuality:
    stage: int
    node_id: NodeId
    step_share: float
    """Time of a decode step in this stage, as a share of the whole lane's."""
    memory_bytes: int
    """Weights and KV cache for all slots."""
    memory_share: float
    """Of what the node has; above 1 it does not fit."""


@dataclass(frozen=True, slots=True)
class PlanQuality:
    """Of lane 0."""

    balance: float
    """Mean time of a stage over the slowest one's: 1 is even, 1/stages is all work in one stage."""
    bottleneck_stage: int
    bottleneck_node: NodeId
    network_bytes_per_token: int
    """Hidden states from stage to stage and the token's id back to the first; 0 with one stage."""
    stages: tuple[StageQuality, ...]


def estimate_quality(plan: PartitionPlan, model: ModelInfo, nodes: Mapping[NodeId, NodeCapability]) -> PlanQuality:
    """Raises `InvalidPlanInput` when the plan is not one for this model on these nodes."""
    check_plan(plan.lanes, nodes, model)
    if not plan.lanes:
        raise InvalidPlanInput("the plan has no lane", param="plan")
    seats = plan.lanes[0].partitions
    rooms = rooms_of(sums_of(model), [nodes[seat.node_id] for seat in seats])
    placed = [
        (seat, room, room.step_s(seat.layers.start, seat.layers.end)) for seat, room in zip(seats, rooms, strict=True)
    ]
    total_s = sum(step_s for _, _, step_s in placed)
    slowest, _, slowest_s = max(placed, key=lambda item: item[2])
    hops = [model.layers[seat.layers.end - 1].activation_bytes for seat in seats[:-1]]
    return PlanQuality(
        balance=total_s / len(placed) / slowest_s,
        bottleneck_stage=slowest.stage,
        bottleneck_node=slowest.node_id,
        network_bytes_per_token=sum(hops) + _TOKEN_ID_BYTES if hops else 0,
        stages=tuple(
            StageQuality(
                stage=seat.stage,
                node_id=seat.node_id,
                step_share=step_s / total_s,
                memory_bytes=room.memory_bytes(seat.layers.start, seat.layers.end),
                memory_share=room.memory_bytes(seat.layers.start, seat.layers.end) / max(1, room.node.memory_bytes),
            )
            for seat, room, step_s in placed
        ),
    )
