"""What a plan will do: times, rates and memory, from what its nodes measured or, failing that, from assumptions.

Times follow how sessions run: decode batches go round a ring of stages, one at a time on one host and one per stage
else (docs/decisions/0006); prompts come in tiles that overlap across stages; auditors replay windows as prompts.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from services.partitioner.domain.hops import TOKEN_ID_BYTES, Hop, Hops
from services.partitioner.domain.placement import SeatRoom, rooms_of, sums_of
from shared.domain.ids import NodeId
from shared.domain.layers import ModelInfo, kv_bytes_per_token, stage_weight_bytes
from shared.domain.numerics import TILE_ROWS
from shared.domain.plan import LayerRange, NodeCapability, Partition, PartitionPlan
from shared.domain.plan_figures import Load, Prediction, SeatPrediction

_BYTES_PER_FLOAT = 4
_WIDE_ROWS = 8
"""Hidden states that a layer's widest moment holds at once: its inputs, and a feed-forward of three to four widths."""


def predict(plan: PartitionPlan, model: ModelInfo, nodes: Mapping[NodeId, NodeCapability], load: Load) -> Prediction:
    """`plan` has passed `check_plan`, and has a lane."""
    lanes = [_Pipeline(lane.partitions, model, nodes) for lane in plan.lanes]
    first = lanes[0]
    rate = first.rate(load.sequences)
    return Prediction(
        first_token_s=first.first_token_s(load.prompt_tokens),
        token_s=first.ring_s(1),
        tokens_per_s=rate,
        verified_tokens_per_s=min(rate, 1 / _busiest_s(lanes, load.sequences)) if len(lanes) > 1 else rate,
        audit_s_per_token=sum(sum(lane.prompt_s) for lane in lanes[1:]),
        network_bytes_per_token=first.network_bytes,
        is_measured=all(room.node.measured is not None for lane in lanes for room in lane.rooms),
        seats=tuple(
            seat
            for lane, pipeline in zip(plan.lanes, lanes, strict=True)
            for seat in pipeline.seats(lane.index, model, load)
        ),
    )


def rates_together(
    plans: Sequence[PartitionPlan], model: ModelInfo, nodes: Mapping[NodeId, NodeCapability]
) -> tuple[float, ...]:
    """Verified tokens per second of each plan when all run at once, each with work for every stage.

    They add up, until a host on which several have seats has no time left: then all slow down alike. The plans have
    passed `check_plan`, and have lanes.
    """
    rates: list[float] = []
    busy: defaultdict[str, float] = defaultdict(float)
    for plan in plans:
        lanes = [_Pipeline(lane.partitions, model, nodes) for lane in plan.lanes]
        sequences = len(lanes[0].partitions)
        work_s = _busy_s(lanes, sequences)
        rate = min(lanes[0].rate(sequences), 1 / max(work_s.values()))
        rates.append(rate)
        for host, host_s in work_s.items():
            busy[host] += rate * host_s
    slower = max(1.0, *busy.values())
    return tuple(rate / slower for rate in rates)


def scratch_bytes(model: ModelInfo, layers: LayerRange) -> int:
    """Room for one tile of a prompt, and for the scores of its rows at the last stage."""
    widest = _WIDE_ROWS * model.n_embd
    if layers.end == model.num_layers:
        widest = max(widest, model.n_vocab)
    return TILE_ROWS * widest * _BYTES_PER_FLOAT


class _Pipeline:
    """One lane: its nodes' times, with hosts that several of them share."""

    def __init__(
        self, partitions: Sequence[Partition], model: ModelInfo, nodes: Mapping[NodeId, NodeCapability]
    ) -> None:
        self.partitions = partitions
        self.rooms = rooms_of(sums_of(model), [nodes[seat.node_id] for seat in partitions])
        spans = [(seat.layers.start, seat.layers.end) for seat in partitions]
        self.hosts = [_host(room) for room in self.rooms]
        self._is_one_host = len(set(self.hosts)) == 1
        crowd = Counter(self.hosts)
        # On one host stages take turns with all its cores; else those that share one have a part of them each.
        share = [1 if self._is_one_host else crowd[host] for host in self.hosts]
        seated = list(zip(self.rooms, spans, share, strict=True))
        self.step_s = [room.step_s(*span) * part for room, span, part in seated]
        self.row_s = [room.row_s(*span) * part for room, span, part in seated]
        self.prompt_s = [room.prompt_s(*span) * part for room, span, part in seated]
        hops = Hops(self.rooms)
        following = [*range(1, len(partitions)), 0]
        self.hops = [hops.between(index, after) for index, after in enumerate(following)]
        self.row_bytes = [model.layers[seat.layers.end - 1].activation_bytes for seat in partitions[:-1]]
        self.row_bytes.append(TOKEN_ID_BYTES)

    @property
    def network_bytes(self) -> int:
        return sum(self.row_bytes) if len(self.partitions) > 1 else 0

    def ring_s(self, rows: int) -> float:
        """Of a decode batch with so many rows: one alone, and what each further one adds."""
        return sum(self._batch_s(rows)) + sum(hop.total_s(rows * size) for hop, size in self._ways())

    def rate(self, sequences: int) -> float:
        """Tokens per second: as many batches as may be under way share the sequences."""
        in_flight = 1 if self._is_one_host else len(self.partitions)
        rows = math.ceil(sequences / in_flight)
        batches = math.ceil(sequences / rows)
        slowest_s = max(*self._batch_s(rows), *(hop.transfer_s(rows * size) for hop, size in self._ways()), 0.0)
        return sequences / max(self.ring_s(rows), batches * slowest_s)

    def first_token_s(self, prompt_tokens: int) -> float:
        """Tiles follow each other through the stages, on one host in turns; the last row goes through the head."""
        tile = min(prompt_tokens, TILE_ROWS)
        hops_s = sum(hop.total_s(tile * size) for hop, size in self._ways()[:-1])
        work_s = [tile * prompt_s for prompt_s in self.prompt_s]
        more = prompt_tokens / tile - 1
        waited_s = sum(work_s) if self._is_one_host else max(work_s)
        head_s = self.step_s[-1] - _without_head_s(self.rooms[-1], self.partitions[-1].layers)
        return sum(work_s) + hops_s + more * waited_s + max(0.0, head_s)

    def work_s(self, sequences: int) -> list[float]:
        """Per stage and decoded token."""
        in_flight = 1 if self._is_one_host else len(self.partitions)
        rows = math.ceil(sequences / in_flight)
        return [batch_s / rows for batch_s in self._batch_s(rows)]

    def seats(self, lane: int, model: ModelInfo, load: Load) -> list[SeatPrediction]:
        ways = self._ways() or [(self.hops[0], 0)]  # to itself: no time
        return [
            SeatPrediction(
                lane=lane,
                stage=seat.stage,
                node_id=seat.node_id,
                layers=seat.layers,
                decode_s=step_s,
                prefill_s=prompt_s,
                hop_s=hop.total_s(size),
                weight_bytes=stage_weight_bytes(model, seat.layers.start, seat.layers.end),
                kv_bytes=kv_bytes_per_token(model, seat.layers.start, seat.layers.end)
                * load.sequences
                * load.context_tokens,
                scratch_bytes=scratch_bytes(model, seat.layers),
                reserved_bytes=room.memory_bytes(seat.layers.start, seat.layers.end),
                memory_bytes=room.node.memory_bytes,
                is_measured=room.node.measured is not None,
            )
            for seat, room, step_s, prompt_s, (hop, size) in zip(
                self.partitions, self.rooms, self.step_s, self.prompt_s, ways, strict=True
            )
        ]

    def _batch_s(self, rows: int) -> list[float]:
        return [step_s + (rows - 1) * row_s for step_s, row_s in zip(self.step_s, self.row_s, strict=True)]

    def _ways(self) -> list[tuple[Hop, int]]:
        return list(zip(self.hops, self.row_bytes, strict=True)) if len(self.partitions) > 1 else []


def _busiest_s(lanes: Sequence[_Pipeline], sequences: int) -> float:
    """Seconds of work per token of the host that has most."""
    return max(_busy_s(lanes, sequences).values())


def _busy_s(lanes: Sequence[_Pipeline], sequences: int) -> Mapping[str, float]:
    """Seconds of work per token, by host."""
    busy_s: defaultdict[str, float] = defaultdict(float)
    for index, lane in enumerate(lanes):
        work = lane.prompt_s if index else lane.work_s(sequences)
        for host, work_s in zip(lane.hosts, work, strict=True):
            busy_s[host] += work_s
    return busy_s


def _host(room: SeatRoom) -> str:
    """A node that does not say on which host it runs is taken for a host of its own."""
    return room.node.host or f"node:{room.node.node_id}"


def _without_head_s(room: SeatRoom, layers: LayerRange) -> float:
    return (room.prompt_sums[layers.end] - room.prompt_sums[layers.start]) / room.speed
