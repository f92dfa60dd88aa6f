"""Rates a plan: how even it is, what holds it up, what it sends over the network, how far it is from the best."""

from collections.abc import Mapping

from services.partitioner.domain.bounds import least_s
from services.partitioner.domain.hops import TOKEN_ID_BYTES, Hops
from services.partitioner.domain.placement import rooms_of, sums_of
from services.partitioner.domain.strategies.pipeline import Cut, Pipelines
from shared.domain.errors import InvalidPlanInput
from shared.domain.ids import NodeId
from shared.domain.layers import ModelInfo
from shared.domain.plan import NodeCapability, Objective, PartitionPlan, check_plan
from shared.domain.plan_figures import PlanQuality, StageQuality


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
    shares = [
        room.memory_bytes(seat.layers.start, seat.layers.end) / max(1, room.node.memory_bytes)
        for seat, room, _ in placed
    ]
    cut = cut_of(plan, model, nodes)
    all_rooms = rooms_of(sums_of(model), list(nodes.values()))
    return PlanQuality(
        balance=total_s / len(placed) / slowest_s if slowest_s else 1.0,
        bottleneck_stage=slowest.stage,
        bottleneck_node=slowest.node_id,
        network_bytes_per_token=sum(hops) + TOKEN_ID_BYTES if hops else 0,
        memory_headroom=1 - max(shares),
        token_s=cut.token_s,
        pace_s=cut.pace_s,
        latency_excess=_excess(cut.token_s, least_s(all_rooms, model.num_layers, Objective.LATENCY)),
        throughput_excess=_excess(cut.pace_s, least_s(all_rooms, model.num_layers, Objective.THROUGHPUT)),
        stages=tuple(
            StageQuality(
                stage=seat.stage,
                node_id=seat.node_id,
                step_share=step_s / total_s if total_s else 1 / len(placed),
                memory_bytes=room.memory_bytes(seat.layers.start, seat.layers.end),
                memory_share=share,
            )
            for (seat, room, step_s), share in zip(placed, shares, strict=True)
        ),
    )


def cut_of(plan: PartitionPlan, model: ModelInfo, nodes: Mapping[NodeId, NodeCapability]) -> Cut:
    """Lane 0 with its predicted times."""
    seats = plan.lanes[0].partitions
    rooms = rooms_of(sums_of(model), [nodes[seat.node_id] for seat in seats])
    pipelines = Pipelines(rooms, model.num_layers, Hops(rooms))
    return pipelines.rated(tuple(range(len(rooms))), tuple(seat.layers.end for seat in seats))


def _excess(value_s: float, least: float) -> float:
    """0 where a hand-made plan does not fit and no bound is known."""
    return max(0.0, value_s / least - 1) if 0 < least < float("inf") else 0.0
