"""How long an engine call of a stage takes on a node.

Best known is what the node timed itself, of that very stage. Else a stage of the same model that some node timed is
scaled by the work of both stages and the pace of both nodes; the median of them where several are as near to the
question, so that none becomes the measure of all. Else the pace alone decides, by the arithmetic of `placement`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.partitioner.domain.placement import SeatRoom, rooms_of, sums_of
from shared.domain.ids import NodeId
from shared.domain.layers import ModelInfo
from shared.domain.measured import STEADY, CallTime, Drift, StageTimes, time_of
from shared.domain.plan import LayerRange, NodeCapability

_DECODE_ROWS = (1, 16)
_CHUNK_ROWS = (1, 64)


@dataclass(frozen=True, slots=True)
class StageCosts:
    """Seconds of calls of one stage on one node."""

    times: StageTimes
    scale: float
    """By which its times are multiplied."""
    by_now: Drift
    """What rows take by now, beside the trials."""
    is_timed: bool
    """Whether they come from a trial of a stage of this model."""

    def decode(self, rows: int, most_threads: int) -> CallTime:
        """A row of each of several sequences."""
        return self._by_now(self.times.decode, rows, most_threads, self.by_now.batch)

    def prompt(self, rows: int, most_threads: int) -> CallTime:
        """Rows of one sequence, of which the last alone may yield a token."""
        return self._by_now(self.times.prompt, rows, most_threads, self.by_now.chunk)

    def replay(self, rows: int, most_threads: int) -> CallTime:
        """Rows of one sequence, of which each yields a token. It takes as many times its trial as calls compute longer:
        what it waits for cores meanwhile follows from all that a plan has them do, and of late that was another."""
        return self._by_now(self.times.replay, rows, most_threads, self.by_now.cpu)

    def _by_now(self, calls: Sequence[CallTime], rows: int, most_threads: int, longer: float | None) -> CallTime:
        """By the clock a call of several rows takes `longer` times its trial. Where that is not known, and in what it
        computes, it takes longer by as much as a call of one row does, once: at a trial the same call is made over and
        over again, and weights that have left the caches are read once for all rows."""
        trial, first = time_of(calls, rows, most_threads), time_of(self.times.decode, 1, most_threads)
        seconds = max(trial.seconds / 2, trial.seconds + (self.by_now.wall - 1) * first.seconds)
        if rows > 1 and longer is not None:
            seconds = trial.seconds * longer
        cpu_s = max(trial.cpu_s / 2, trial.cpu_s + (self.by_now.cpu - 1) * first.cpu_s)
        return CallTime(trial.rows, seconds * self.scale, cpu_s * self.scale, trial.threads)


class CallCosts:
    """Of stages of one model on some nodes."""

    def __init__(self, model: ModelInfo, nodes: Iterable[NodeCapability]) -> None:
        rooms = rooms_of(sums_of(model), list(nodes))
        self._rooms = {room.node.node_id: room for room in rooms}
        self._timed = [
            (room, stage)
            for room in rooms
            if room.node.measured is not None
            for stage in room.node.measured.stages
            if stage.model_root == model.root and stage.end <= model.num_layers
        ]
        self._num_layers = model.num_layers

    def of(self, node_id: NodeId, layers: LayerRange) -> StageCosts:
        room = self._rooms[node_id]
        if not self._timed:
            return StageCosts(_by_pace(room, layers), 1.0, STEADY, is_timed=False)
        timed_by, times = self._nearest(room, layers)
        by_now = room.node.measured.by_now if room.node.measured is not None else STEADY
        return StageCosts(times, _step_s(room, layers) / _step_s(timed_by, _layers(times)), by_now, is_timed=True)

    def _nearest(self, room: SeatRoom, layers: LayerRange) -> tuple[SeatRoom, StageTimes]:
        distances = [self._distance(room, layers, *timed) for timed in self._timed]
        nearest = min(distances)
        found = [timed for timed, distance in zip(self._timed, distances, strict=True) if distance == nearest]
        found.sort(key=lambda timed: timed[1].decode[0].seconds / _step_s(timed[0], _layers(timed[1])))
        return found[(len(found) - 1) // 2]

    def _distance(
        self, room: SeatRoom, layers: LayerRange, timed_by: SeatRoom, times: StageTimes
    ) -> tuple[bool, bool, bool, int, bool]:
        """Less is better: the very question, else ends of the model are unlike the rest of it, then the lengths count,
        then the node."""
        is_own = timed_by is room and _layers(times) == layers
        is_other_end = (times.end == self._num_layers) is not (layers.end == self._num_layers)
        is_other_start = (times.start == 0) is not (layers.start == 0)
        off = abs(len(_layers(times)) - len(layers))
        return not is_own, is_other_end, is_other_start, off, timed_by.speed != room.speed


def _layers(times: StageTimes) -> LayerRange:
    return LayerRange(times.start, times.end)


def _step_s(room: SeatRoom, layers: LayerRange) -> float:
    return room.step_s(layers.start, layers.end)


def _by_pace(room: SeatRoom, layers: LayerRange) -> StageTimes:
    """A first row and what each further one adds; the head counts for every row that yields a token."""
    first_s, row_s = room.step_s(layers.start, layers.end), room.row_s(layers.start, layers.end)
    prompt_s = room.prompt_s(layers.start, layers.end)
    decode = [(rows, first_s + (rows - 1) * row_s) for rows in _DECODE_ROWS]
    prompt = [(rows, rows * prompt_s) for rows in _CHUNK_ROWS]
    replay = [(rows, rows * row_s) for rows in _CHUNK_ROWS]
    return StageTimes("", layers.start, layers.end, *map(_calls, (decode, prompt, replay)))


def _calls(times: Sequence[tuple[int, float]]) -> tuple[CallTime, ...]:
    return tuple(CallTime(rows, seconds, seconds, threads=1) for rows, seconds in times)
