"""Plans as clients see them. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from services.api.domain.cluster_view import Json
from shared.contracts.partitioner import PreviewResponse
from shared.domain.ids import NodeId
from shared.domain.plan import Lane
from shared.domain.plan_figures import PlanQuality, SeatPrediction


def preview_resource(found: PreviewResponse) -> Json:
    """What is predicted is about the first pipeline."""
    first, prediction = found.pipelines[0].plan, found.prediction
    return {
        "object": "plan.preview",
        "model": first.model_id,
        "strategy": first.strategy,
        "pipelines": [
            {
                "plan_id": pipeline.plan.plan_id,
                "tokens_per_s": pipeline.tokens_per_s,
                "lanes": _lanes(pipeline.plan.lanes),
            }
            for pipeline in found.pipelines
        ],
        "predicted": {
            "tokens_per_s": prediction.tokens_per_s,
            "verified_tokens_per_s": prediction.verified_tokens_per_s,
            "first_token_ms": prediction.first_token_s * 1000,
            "token_ms": prediction.token_s * 1000,
            "audit_ms_per_token": prediction.audit_s_per_token * 1000,
            "network_bytes_per_token": prediction.network_bytes_per_token,
            "answers_ms": prediction.answers_s * 1000,
            "is_measured": prediction.is_measured,
            "is_timed": prediction.is_timed,
        },
        "seats": [_seat_resource(seat) for seat in prediction.seats],
        "nodes": _memory(prediction.seats),
        "quality": quality_resource(found.quality),
    }


def quality_resource(quality: PlanQuality) -> Json:
    told = asdict(quality)
    return {
        **{name: value for name, value in told.items() if name not in {"token_s", "pace_s", "stages"}},
        "token_ms": quality.token_s * 1000,
        "pace_ms": quality.pace_s * 1000,
        "stages": told["stages"],
    }


def _lanes(lanes: Sequence[Lane]) -> list[list[Json]]:
    return [
        [{"node_id": seat.node_id, "start": seat.layers.start, "end": seat.layers.end} for seat in lane.partitions]
        for lane in lanes
    ]


def _seat_resource(seat: SeatPrediction) -> Json:
    return {
        "lane": seat.lane,
        "stage": seat.stage,
        "node_id": seat.node_id,
        "start": seat.layers.start,
        "end": seat.layers.end,
        "decode_ms": seat.decode_s * 1000,
        "prefill_ms_per_token": seat.prefill_s * 1000,
        "hop_ms": seat.hop_s * 1000,
        "weight_bytes": seat.weight_bytes,
        "kv_bytes": seat.kv_bytes,
        "scratch_bytes": seat.scratch_bytes,
        "reserved_bytes": seat.reserved_bytes,
        "is_measured": seat.is_measured,
    }


def _memory(seats: Sequence[SeatPrediction]) -> list[Json]:
    """Bytes per node. A node that has the same layers in two lanes holds their weights once."""
    stages: defaultdict[NodeId, dict[tuple[int, int], list[SeatPrediction]]] = defaultdict(dict)
    for seat in seats:
        stages[seat.node_id].setdefault((seat.layers.start, seat.layers.end), []).append(seat)
    return [
        {
            "node_id": node_id,
            "used_bytes": sum(
                held[0].weight_bytes + held[0].scratch_bytes + sum(seat.kv_bytes for seat in held)
                for held in by_layers.values()
            ),
            "reserved_bytes": sum(held[0].reserved_bytes for held in by_layers.values()),
            "memory_bytes": next(iter(by_layers.values()))[0].memory_bytes,
        }
        for node_id, by_layers in sorted(stages.items())
    ]
