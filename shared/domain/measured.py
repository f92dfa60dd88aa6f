"""What a worker measured of itself and of the way to its peers: the figures that predictions rest on.

All of it is a node's word. A false one costs speed, never safety: who claims too much gets more layers than it can
keep up with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.domain.errors import InvalidInput
from shared.domain.ids import NodeId

NOMINAL_DECODE_BYTES_PER_S = 5.4e9
"""Of a node of speed 1, one core, that measured nothing. Two cores of an EPYC with AVX-512 decode SmolLM2-135M (81 MB
of layer-bytes) at 132 tokens/s (bench/results/throughput-20261123-202614.json)."""
MAX_LINKS = 16
"""Peers that a node tells of: bounds the wire, whatever the size of the cluster."""
MAX_TIMED_STAGES = 16
MAX_CALL_TIMES = 8
"""Of one kind, per stage."""
_MAX_ROOT = 128
_MAX_LAYERS = 65_536
_MAX_ROWS = 4_096
_MAX_THREADS = 4_096
_MIN_S_PER_BYTE, _MAX_S_PER_BYTE = 1e-16, 1e-3  # from a thousand times the fastest memory to a kilobyte per second
_MIN_CALL_S, _MAX_CALL_S = 1e-7, 3_600.0
_MAX_RTT_S = 60.0
_MIN_BYTES_PER_S, _MAX_BYTES_PER_S = 1.0, 1e15
_MIN_DRIFT, _MAX_DRIFT = 0.01, 100.0


@dataclass(frozen=True, slots=True)
class PeerLink:
    """The way to one peer and back."""

    peer: NodeId
    rtt_s: float
    """Of the smallest frame there and back, software of both ends included."""
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class CallTime:
    """How long a call of the engine takes while nothing else runs on the machine."""

    rows: int
    seconds: float
    cpu_s: float
    """That the calling thread computed; less than `seconds` where the kernel does not give it a whole core."""
    threads: int
    """Cores that it keeps busy for so long."""


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Of the calls of one loaded stage. Each kind of call by rows, ascending, at least one; per number of rows the
    quickest number of threads, and one thread if that was not it."""

    model_root: str
    start: int
    end: int
    """Layers [start, end)."""
    decode: tuple[CallTime, ...]
    """One row of each of several sequences; at the last stage with head and choice of a token for every row."""
    prompt: tuple[CallTime, ...]
    """Rows of one sequence of which the last alone yields a token."""
    replay: tuple[CallTime, ...]
    """Rows of one sequence of which each yields a token: what auditors run."""


@dataclass(frozen=True, slots=True)
class Drift:
    """What rows take by now, beside the trials of their stages. Factors are by how much longer calls take."""

    wall: float
    """Of calls of one row, by the clock: what else runs on the machine counts."""
    cpu: float
    """Of calls of one row, what the calling thread computes: only the work counts, and how well the machine does it."""
    batch: float | None = None
    """By the clock, of calls with a row of each of several sequences; None: there were none of late."""
    chunk: float | None = None
    """By the clock, of calls with rows of one sequence; None: there were none of late."""
    handling_s: float = 0.0
    """Of a row at a stage, beside the call: threads that wake each other, and the frame that is made of the result."""


STEADY = Drift(1.0, 1.0)
"""As at the trials."""


@dataclass(frozen=True, slots=True)
class Pace:
    """On a stage of no model that every node is tried on. A *layer-byte* is the unit of work: a byte of the weights of
    an average layer; the head counts by its FLOPs."""

    decode_s_per_byte: float
    """Seconds per layer-byte of a call with one row."""
    prefill_s_per_byte: float
    """Seconds per layer-byte and token within a prompt."""

    @property
    def speed(self) -> float:
        """As `NodeCapability.speed`."""
        return 1 / (self.decode_s_per_byte * NOMINAL_DECODE_BYTES_PER_S)


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of one node."""

    pace: Pace
    links: tuple[PeerLink, ...] = ()
    """At most `MAX_LINKS`, each to another peer."""
    stages: tuple[StageTimes, ...] = ()
    """At most `MAX_TIMED_STAGES`."""
    by_now: Drift = STEADY
    """Beside `stages`."""


def time_of(calls: Sequence[CallTime], rows: int, most_threads: int | None = None) -> CallTime:
    """The call with so many rows, at the quickest of the numbers of threads allowed (None: any).

    Between the sizes that were timed, and beyond them, times lie on the straight line through the two nearest, since a
    call reads its weights once and computes for every row; but beyond them no row costs less than half of what one does
    at the nearest size. With one size known every row costs what it does there.
    """
    known = _quickest(calls, most_threads)
    place = next((index for index, call in enumerate(known) if call.rows >= rows), len(known) - 1)
    before, after = known[max(0, place - 1)], known[max(1, place) % len(known)]
    nearest = min(before, after, key=lambda call: abs(call.rows - rows))
    factor = rows / nearest.rows
    if before is not after:
        per_row_s = (after.seconds - before.seconds) / (after.rows - before.rows)
        on_line = (before.seconds + (rows - before.rows) * per_row_s) / nearest.seconds
        factor = on_line if before.rows <= rows <= after.rows else max(on_line, factor / 2)
    return CallTime(rows, nearest.seconds * factor, nearest.cpu_s * factor, nearest.threads)


def _quickest(calls: Sequence[CallTime], most_threads: int | None) -> list[CallTime]:
    """One call for every number of rows."""
    limit = most_threads or _MAX_THREADS

    def rank(call: CallTime) -> tuple[int, float]:
        """Where all take too many threads, the one that takes fewest."""
        return max(0, call.threads - limit), call.seconds

    by_rows: dict[int, CallTime] = {}
    for call in calls:
        by_rows[call.rows] = min(by_rows.get(call.rows, call), call, key=rank)
    return [by_rows[rows] for rows in sorted(by_rows)]


def check_measured(node_id: NodeId, measured: Measured) -> None:
    """Raise `InvalidInput`, naming the field, for figures that cannot be true or are too many."""
    check_links(node_id, measured.links)
    check_stages(measured.stages)
    check_pace(measured.pace)
    by_now = measured.by_now
    _check_figures(
        ("by_now.wall", by_now.wall, _MIN_DRIFT, _MAX_DRIFT),
        ("by_now.cpu", by_now.cpu, _MIN_DRIFT, _MAX_DRIFT),
        ("by_now.batch", 1.0 if by_now.batch is None else by_now.batch, _MIN_DRIFT, _MAX_DRIFT),
        ("by_now.chunk", 1.0 if by_now.chunk is None else by_now.chunk, _MIN_DRIFT, _MAX_DRIFT),
        ("by_now.handling_s", by_now.handling_s, 0.0, _MAX_CALL_S),
    )


def check_pace(pace: Pace) -> None:
    """Raise `InvalidInput` as `check_measured`."""
    _check_figures(
        ("pace.decode_s_per_byte", pace.decode_s_per_byte, _MIN_S_PER_BYTE, _MAX_S_PER_BYTE),
        ("pace.prefill_s_per_byte", pace.prefill_s_per_byte, _MIN_S_PER_BYTE, _MAX_S_PER_BYTE),
    )


def check_links(node_id: NodeId, links: Sequence[PeerLink]) -> None:
    """Raise `InvalidInput` as `check_measured`."""
    if len(links) > MAX_LINKS:
        raise InvalidInput(f"links may name {MAX_LINKS} peers, not {len(links)}", param="measured.links")
    if len({link.peer for link in links} | {node_id}) != len(links) + 1:
        raise InvalidInput("links must go to other nodes, to each at most once", param="measured.links")
    for link in links:
        # Plans over a thousand nodes read sixteen thousand of these, nearly all of them right.
        if not (0.0 <= link.rtt_s <= _MAX_RTT_S and _MIN_BYTES_PER_S <= link.bytes_per_s <= _MAX_BYTES_PER_S):
            _check_figures(
                ("links.rtt_s", link.rtt_s, 0.0, _MAX_RTT_S),
                ("links.bytes_per_s", link.bytes_per_s, _MIN_BYTES_PER_S, _MAX_BYTES_PER_S),
            )


def check_stages(stages: Sequence[StageTimes]) -> None:
    """Raise `InvalidInput` as `check_measured`."""
    if len(stages) > MAX_TIMED_STAGES:
        raise InvalidInput(f"stages may be {MAX_TIMED_STAGES}, not {len(stages)}", param="measured.stages")
    for stage in stages:
        if len(stage.model_root) > _MAX_ROOT or not 0 <= stage.start < stage.end <= _MAX_LAYERS:
            raise InvalidInput("a stage is a model's root and a range of layers", param="measured.stages")
        for calls in (stage.decode, stage.prompt, stage.replay):
            _check_calls(calls)
    if len({(stage.model_root, stage.start, stage.end) for stage in stages}) != len(stages):
        raise InvalidInput("a stage is told of once", param="measured.stages")


def _check_calls(calls: Sequence[CallTime]) -> None:
    if not 1 <= len(calls) <= MAX_CALL_TIMES or [call.rows for call in calls] != sorted(call.rows for call in calls):
        raise InvalidInput(f"calls are 1 to {MAX_CALL_TIMES} by rows, ascending", param="measured.stages")
    for call in calls:
        _check_figures(
            ("stages.rows", call.rows, 1, _MAX_ROWS),
            ("stages.threads", call.threads, 1, _MAX_THREADS),
            ("stages.seconds", call.seconds, _MIN_CALL_S, _MAX_CALL_S),
            ("stages.cpu_s", call.cpu_s, _MIN_CALL_S, _MAX_CALL_S),
        )


def _check_figures(*figures: tuple[str, float, float, float]) -> None:
    for name, value, low, high in figures:
        if not low <= value <= high:  # nor is NaN
            raise InvalidInput(f"{name} must lie in [{low:g}, {high:g}], not {value}", param=f"measured.{name}")
