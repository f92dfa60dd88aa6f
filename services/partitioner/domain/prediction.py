"""What a plan will do: times, rates and memory, from what its nodes measured or, failing that, from assumptions.

Times follow how sessions run. Decode batches go round a ring of stages, one at a time on one host and one per stage
else (docs/decisions/0006). Prompts come in tiles that overlap across stages. Auditors replay windows, each in one call
per stage, on nodes that decode as well: a node runs one call at a time, and a host no more than it has cores.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from services.partitioner.domain.call_costs import CallCosts, StageCosts
from services.partitioner.domain.hops import ON_ONE_HOST, TOKEN_ID_BYTES, Hop, Hops
from services.partitioner.domain.placement import SeatRoom, rooms_of, sums_of
from shared.domain.hidden import FLOAT_BYTES
from shared.domain.ids import NodeId
from shared.domain.layers import ModelInfo, kv_bytes_per_token, stage_weight_bytes
from shared.domain.measured import CallTime
from shared.domain.numerics import TILE_ROWS
from shared.domain.pacing import pace
from shared.domain.plan import LayerRange, NodeCapability, Partition, PartitionPlan, for_plans
from shared.domain.plan_figures import Load, Prediction, SeatPrediction
from shared.domain.task import Verification

_WIDE_ROWS = 8
"""Hidden states that a layer's widest moment holds at once: its inputs, and a feed-forward of three to four widths."""
_HALVINGS = 50


def predict(plan: PartitionPlan, model: ModelInfo, nodes: Mapping[NodeId, NodeCapability], load: Load) -> Prediction:
    """`plan` has passed `check_plan`, and has a lane."""
    lanes = _lanes(plan, model, nodes, load)
    executors, auditors = lanes[0], lanes[1:]
    alone, together = _Steady(lanes[:1], load), _Steady(lanes, load)
    start = _Start(lanes, load)
    rate = load.sequences / together.round_s
    return Prediction(
        first_token_s=start.first_token_s,
        token_s=sum(seat.decode(1).seconds + seat.onward_s(1) for seat in executors),
        tokens_per_s=load.sequences / alone.round_s,
        verified_tokens_per_s=rate,
        answers_s=start.last_token_s + (load.answer_tokens - 1) * together.round_s + _last_audit_s(auditors, load),
        audit_s_per_token=sum(call.per_round * call.time.seconds for call in together.beside) / load.sequences,
        network_bytes_per_token=sum(seat.row_bytes for seat in executors),
        is_measured=all(seat.room.node.measured is not None for seat in chain(*lanes)),
        is_timed=all(seat.costs.is_timed for seat in chain(*lanes)),
        seats=tuple(_told(seat, index, model, load) for index, lane in enumerate(lanes) for seat in lane),
    )


def rates_together(
    plans: Sequence[PartitionPlan], model: ModelInfo, nodes: Mapping[NodeId, NodeCapability]
) -> tuple[float, ...]:
    """Verified tokens per second of each plan when all run at once, each with work for every stage.

    They add up, until a host on which several have seats has no core left: then all slow down alike. For plans to be
    compared by, so the times of single stages, which move all the time, do not count. The plans have passed
    `check_plan`, and have lanes.
    """
    nodes = {node_id: for_plans(node) for node_id, node in nodes.items()}
    rates: list[float] = []
    busy: defaultdict[str, float] = defaultdict(float)
    for plan in plans:
        load = Load(sequences=len(plan.lanes[0].partitions))
        steady = _Steady(_lanes(plan, model, nodes, load), load)
        rates.append(load.sequences / steady.round_s)
        for machine, share in steady.busy.items():
            busy[machine] += share / steady.round_s
    slower = max(1.0, *busy.values())
    return tuple(rate / slower for rate in rates)


def scratch_bytes(model: ModelInfo, layers: LayerRange) -> int:
    """Room for one tile of a prompt, and for the scores of its rows at the last stage."""
    widest = _WIDE_ROWS * model.n_embd
    if layers.end == model.num_layers:
        widest = max(widest, model.n_vocab)
    return TILE_ROWS * widest * FLOAT_BYTES


@dataclass(frozen=True, slots=True)
class _Seat:
    place: Partition
    room: SeatRoom
    costs: StageCosts
    threads: int
    """That its calls may use."""
    hop: Hop
    """To the next seat; from the last one to the first."""
    row_bytes: int
    """Of what a row becomes on that way; 0 in a ring of one."""

    @property
    def node_id(self) -> NodeId:
        return self.place.node_id

    @property
    def machine(self) -> str:
        return self.room.node.machine

    def onward_s(self, rows: int) -> float:
        """From the end of a call of so many rows until they are at the next seat."""
        return self.costs.by_now.handling_s + self.hop.total_s(rows * self.row_bytes)

    def decode(self, rows: int) -> CallTime:
        return self.costs.decode(rows, self.threads)

    def prompt(self, rows: int) -> CallTime:
        return self.costs.prompt(rows, self.threads)

    def replay(self, rows: int) -> CallTime:
        return self.costs.replay(rows, self.threads)


_Lane = Sequence[_Seat]


def _lanes(
    plan: PartitionPlan, model: ModelInfo, nodes: Mapping[NodeId, NodeCapability], load: Load
) -> list[list[_Seat]]:
    costs = CallCosts(model, nodes.values())
    everybody = [nodes[node_id] for node_id in {seat.node_id for seat in plan.seats}]
    sums = sums_of(model)
    lanes = []
    for lane in plan.lanes:
        places = lane.partitions
        rooms = rooms_of(sums, [nodes[place.node_id] for place in places])
        beside = () if lane.index == 0 and not _is_quorum(load, len(plan.lanes)) else everybody
        threads = pace([room.node for room in rooms], beside=beside).threads
        hops, following = Hops(rooms), [*range(1, len(places)), 0]
        sizes = [model.layers[place.layers.end - 1].activation_bytes for place in places[:-1]]
        sizes = [*sizes, TOKEN_ID_BYTES] if sizes else [0]
        lanes.append(
            [
                _Seat(
                    place,
                    room,
                    costs.of(place.node_id, place.layers),
                    threads=threads[index],
                    hop=hops.between(index, after),
                    row_bytes=size,
                )
                for index, (place, room, after, size) in enumerate(zip(places, rooms, following, sizes, strict=True))
            ]
        )
    return lanes


def _is_quorum(load: Load, num_lanes: int) -> bool:
    """Whether every lane decodes."""
    return load.verification is Verification.QUORUM and num_lanes > 1


@dataclass(frozen=True, slots=True)
class _SeatWork:
    """What a seat computes while lane 0 yields a token for every sequence."""

    seat: _Seat
    time: CallTime
    per_round: float

    @property
    def core_s(self) -> float:
        """What cores compute for it; a call that has to wait for its share of one takes longer."""
        return self.per_round * self.time.cpu_s * self.time.threads


class _Steady:
    """Sequences that all decode, long after their prompts. A *round* yields one token of each.

    The round takes as long as the slowest of these lets it:

    * the way round the ring, with what its batches wait at nodes that audit as well (`_wait_s`);
    * with several batches under way, the slowest stage or transfer once for each of them;
    * the calls of every node, one after the other;
    * the calls of every host, on as many cores as it has (the utilisation law, Denning and Buzen 1978).
    """

    def __init__(self, lanes: Sequence[_Lane], load: Load) -> None:
        ring = lanes[0]
        is_quorum = _is_quorum(load, len(lanes))
        in_flight = pace([seat.room.node for seat in ring]).decode_batches_in_flight
        self._rows = math.ceil(load.sequences / in_flight)
        self._batches = math.ceil(load.sequences / self._rows)
        self._ring = [_SeatWork(seat, seat.decode(self._rows), self._batches) for seat in ring]
        self.beside = list(self._decoding(lanes[1:]) if is_quorum else self._replaying(lanes[1:], load))
        self.busy = self._busy()
        self.round_s = max(self._around_s(), self._pace_s(), *self._node_s().values(), *self.busy.values())

    def _decoding(self, lanes: Sequence[_Lane]) -> Iterator[_SeatWork]:
        return (_SeatWork(seat, seat.decode(self._rows), self._batches) for lane in lanes for seat in lane)

    def _replaying(self, lanes: Sequence[_Lane], load: Load) -> Iterator[_SeatWork]:
        rows = min(load.window_tokens, TILE_ROWS)
        return (_SeatWork(seat, seat.replay(rows), load.sequences / rows) for lane in lanes for seat in lane)

    @property
    def _alone_s(self) -> float:
        """Round the ring once, with nobody else on its nodes."""
        hops_s = sum(call.seat.onward_s(self._rows) for call in self._ring)
        return sum(call.time.seconds for call in self._ring) + hops_s

    def _around_s(self) -> float:
        """The solution of round = alone + waiting(round): what is waited shrinks as the round grows."""
        low = self._alone_s
        high = low + sum(call.per_round * call.time.seconds for call in self.beside)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._alone_s + self._waited_s(middle) > middle:
                low = middle
            else:
                high = middle
        return high

    def _waited_s(self, round_s: float) -> float:
        at = Counter(call.seat.node_id for call in self._ring)
        return sum(
            at[call.seat.node_id] * call.per_round * _wait_s(call.time.seconds, round_s) / self._batches
            for call in self.beside
        )

    def _pace_s(self) -> float:
        transfers = (call.seat.hop.transfer_s(self._rows * call.seat.row_bytes) for call in self._ring)
        return self._batches * max(*(call.time.seconds for call in self._ring), *transfers)

    def _node_s(self) -> Mapping[NodeId, float]:
        busy_s: defaultdict[NodeId, float] = defaultdict(float)
        for call in chain(self._ring, self.beside):
            busy_s[call.seat.node_id] += call.per_round * call.time.seconds
        return busy_s

    def _busy(self) -> Mapping[str, float]:
        """By host, seconds of all its cores. The software of a hop computes about as long as a hop within a host takes;
        the rest of a longer one is the wire's."""
        busy_s: defaultdict[str, float] = defaultdict(float)
        for call in chain(self._ring, self.beside):
            busy_s[call.seat.machine] += call.core_s / call.seat.room.node.cores
        for call in self._ring:
            software_s = min(call.seat.hop.latency_s, ON_ONE_HOST.latency_s)
            busy_s[call.seat.machine] += self._batches * software_s / call.seat.room.node.cores
        return busy_s


def _wait_s(call_s: float, round_s: float) -> float:
    """What a call of `call_s` at a node costs a batch that comes by once in `round_s`.

    The call begins when the batch has left, at any time of the round alike. A call as long as a round or longer holds
    the batch up from when it comes back, half a round later on average; a shorter one does so with the chance that the
    batch comes back meanwhile, for half of its time on average.
    """
    return call_s - round_s / 2 if call_s >= round_s else call_s * call_s / (2 * round_s)


class _Start:
    """From the moment when all sequences are asked for until each has its first token, committed where it is audited.

    Prompts go in tiles, sequences in turn. Auditors run a prompt once lane 0 has signed for it.
    """

    def __init__(self, lanes: Sequence[_Lane], load: Load) -> None:
        self._lanes = lanes
        self._tile = min(load.prompt_tokens, TILE_ROWS)
        tiles = load.prompt_tokens / self._tile
        n = load.sequences
        # The last tile of the first prompt goes once all prompts are through but for their last tiles.
        first_s, last_s = (self._through_s(lanes[:1], count) for count in (n * (tiles - 1) + 1, n * tiles))
        if len(lanes) > 1:
            audit_s = self._through_s(lanes[1:], tiles)
            first_s += audit_s
            last_s = max(last_s + audit_s, self._through_s(lanes, n * tiles))
        self.first_token_s = (first_s + last_s) / 2
        """Median of the sequences."""
        self.last_token_s = last_s
        """Of the sequence that gets its first token last."""

    def _through_s(self, lanes: Sequence[_Lane], tiles: float) -> float:
        """So many tiles through each of some lanes at once: the first takes its time at every stage, the others follow
        as fast as the slowest stage, the busiest node and the cores of every host let them."""
        path_s = max(sum(self._stage_s(seat) for seat in lane) + self._hops_s(lane) for lane in lanes)
        per_node: defaultdict[NodeId, float] = defaultdict(float)
        per_machine: defaultdict[str, float] = defaultdict(float)
        for seat in chain(*lanes):
            call = seat.prompt(self._tile)
            per_node[seat.node_id] += call.seconds
            per_machine[seat.machine] += call.cpu_s * call.threads / seat.room.node.cores
        follow_s = max(per_node.values())
        return max(path_s + (tiles - 1) * follow_s, tiles * max(per_machine.values()))

    def _stage_s(self, seat: _Seat) -> float:
        return seat.prompt(self._tile).seconds

    def _hops_s(self, lane: _Lane) -> float:
        return sum(seat.onward_s(self._tile) for seat in lane[:-1])


def _last_audit_s(lanes: Sequence[_Lane], load: Load) -> float:
    """An answer ends when its last window has been replayed."""
    rows = min(load.answer_tokens, load.window_tokens, TILE_ROWS)
    return max((sum(seat.replay(rows).seconds for seat in lane) for lane in lanes), default=0.0)


def _told(seat: _Seat, lane: int, model: ModelInfo, load: Load) -> SeatPrediction:
    start, end = seat.place.layers.start, seat.place.layers.end
    tile = min(load.prompt_tokens, TILE_ROWS)
    return SeatPrediction(
        lane=lane,
        stage=seat.place.stage,
        node_id=seat.node_id,
        layers=seat.place.layers,
        decode_s=seat.decode(1).seconds,
        prefill_s=seat.prompt(tile).seconds / tile,
        hop_s=seat.hop.total_s(seat.row_bytes),
        weight_bytes=stage_weight_bytes(model, start, end),
        kv_bytes=kv_bytes_per_token(model, start, end) * load.sequences * load.context_tokens,
        scratch_bytes=scratch_bytes(model, seat.place.layers),
        reserved_bytes=seat.room.memory_bytes(start, end),
        memory_bytes=seat.room.node.memory_bytes,
        is_measured=seat.room.node.measured is not None,
    )
