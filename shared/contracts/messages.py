"""`POST /messages` of coordinator and workers: one body, told apart by `type`.

Direction C->W carries the worker's `coordinator_token` as bearer, W->C the `node_token`. Delivery is at least once:
every handler is idempotent by (type, task, epoch, lane, stage). Stale epochs are refused with `stale_epoch`.
"""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from shared.contracts.base import Contract
from shared.domain.ids import Epoch, ModelId, NodeId, TaskId
from shared.domain.measured import MAX_LINKS, MAX_TIMED_STAGES, Drift, Pace, PeerLink, StageTimes
from shared.domain.numerics import StageFacts
from shared.domain.plan import LayerRange
from shared.domain.signing import Signed
from shared.domain.task import SamplerParams, TokenRecord

MAX_PREFIX_TOKENS = 262_144
MAX_DRAFTS_PER_MESSAGE = 1_024
MAX_STAGES_PER_NODE = 256
MAX_LAYERS = 65_536
MAX_FACT = 256


def _checked_range(layers: LayerRange) -> LayerRange:
    if not 0 <= layers.start < layers.end <= MAX_LAYERS:
        raise ValueError(f"layers should be a range within 0 and {MAX_LAYERS}")
    return layers


class SessionMessage(Contract):
    task_id: TaskId
    choice: int = 0
    epoch: Epoch


class StageRef(Contract):
    """Which bytes a stage is: enough to find, check and load it."""

    model_id: Annotated[ModelId, Field(max_length=128)]
    model_root: str = Field(max_length=128)
    layers: Annotated[LayerRange, AfterValidator(_checked_range)]
    num_layers: int = Field(ge=1, le=MAX_LAYERS)
    """Layers of the whole model: tells whether this is the last stage."""


class Peer(Contract):
    """A neighbour on the ring."""

    node_id: NodeId
    address: str
    link_token: str
    """Bearer of the link from the earlier to the later of the two."""


class LoadStage(Contract):
    """C->W: hold this stage ready. The answer says whether it is, with its facts; if not yet, `StageReady` follows."""

    type: Literal["load_stage"] = "load_stage"
    stage_ref: StageRef
    holds: bool = True
    """False: only fetch and test it, so that it is loaded quickly once it has to be held."""


class SignedText(Contract):
    """A text in canonical form (shared.domain.canonical), and its Ed25519 signature in hex."""

    text: str = Field(max_length=16_384)
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")

    @classmethod
    def of(cls, signed: Signed) -> "SignedText":
        return cls(text=signed.text.decode("ascii"), signature=signed.signature.hex())

    def signed(self) -> Signed:
        return Signed(self.text.encode(), bytes.fromhex(self.signature))


class WorkAssignment(SessionMessage):
    """C->W: take this seat. The answer says whether the stage is loaded and a slot taken; else `SeatReady` follows."""

    type: Literal["work_assignment"] = "work_assignment"
    lane: int
    stage: int
    num_stages: int
    plan_id: str
    stage_ref: StageRef
    previous: Peer | None
    """Who sends to this seat (for stage 0: the last stage, with tokens). None: a ring of one."""
    next: Peer | None
    """Whom this seat sends to (for the last stage: stage 0)."""
    prefix_ids: Annotated[tuple[int, ...], Field(max_length=MAX_PREFIX_TOKENS)] = ()
    """First and last stage only: the prompt, then what is committed already."""
    num_prompt: int = 0
    max_rows: int
    """Rows (prompt and answer) this session may reach: bounds the slot."""
    max_tokens: int
    """Tokens still to generate in this epoch."""
    sampler: SamplerParams
    end_ids: tuple[int, ...] = ()
    decode_batches_in_flight: int = 1
    threads: int = 1
    """Cores an engine call may use."""
    replay_threads: int = 1
    """Those that a call may use with rows before the order's `first_row`: what others wait for."""
    order: SignedText
    """The `shared.domain.receipt.Assignment` of this seat, signed by the coordinator."""
    start_row: Annotated[int, Field(ge=0)] = 0
    """0, or the order's `first_row`: the rows before it are here already, kept from an earlier epoch of the task."""
    next_row: Annotated[int, Field(ge=0)] = 0
    """0, or the order's `first_row`: the next seat has the rows before it, so they are not sent there."""
    replay_stages: Annotated[int, Field(ge=0)] = 0
    """Stages of the lane, from the first on, by which the rows before `first_row` go once more: the last of them does
    not have them. One that has them computes nothing, and sends the next one what it sent the first time."""
    keeps_passed: bool = False
    """Keep the rows that are passed on, as long as there is room for them: a later epoch may need them."""
    decodes: bool = True
    """False: an audit lane. It runs rows before `first_row` of its order when started, later ones as windows are
    released, and yields a record for every row from there on."""
    max_windows_ahead: int = 0
    """Lane 0: windows it may be ahead of the last commit; 0: no limit (nothing waits for a commit)."""


class SessionStart(SessionMessage):
    """C->W (stage 0): every seat is ready, begin."""

    type: Literal["session_start"] = "session_start"
    lane: int = 0


class SessionStop(SessionMessage):
    """C->W: forget this session; free its slot. Also for sessions never heard of."""

    type: Literal["session_stop"] = "session_stop"
    reason: str
    keep: bool = False
    """The session goes on in another epoch: keep the rows it has here for that, while nobody else needs their slot."""


class WindowRelease(SessionMessage):
    """C->W (stage 0 of an audit lane): run the rows of a window. Lane 0 has signed for it."""

    type: Literal["window_release"] = "window_release"
    lane: int
    window: int
    row_start: int
    ids: Annotated[tuple[int, ...], Field(min_length=1, max_length=MAX_PREFIX_TOKENS)]
    """The ids at rows row_start, row_start + 1, …"""


class SealWindow(SessionMessage):
    """C->W (every seat of a lane): this window ends at `row_end` already, sign for it once you are there. Never sent
    for a window that may have been signed in full; a seat that has signed it ignores the message."""

    type: Literal["seal_window"] = "seal_window"
    lane: int
    window: int
    row_end: int


class WindowCommitted(SessionMessage):
    """C->W (stage 0 of each lane that decodes): it may run so many windows ahead of this one."""

    type: Literal["window_committed"] = "window_committed"
    lane: int
    window: int


class LinkEnds(Contract):
    """Another worker, and the links between it and this one."""

    previous: Peer
    """With the token of the link from it."""
    next: Peer
    """With the token of the link to it."""


Peers = Annotated[tuple[LinkEnds, ...], Field(max_length=MAX_LINKS)]


class MeetPeers(Contract):
    """C->W: these workers are going to time the way to this one and back: open the links to them."""

    type: Literal["meet_peers"] = "meet_peers"
    peers: Peers


class MeasureNode(Contract):
    """C->W: try how fast this node is, between sessions; `NodeMeasured` follows."""

    type: Literal["measure_node"] = "measure_node"
    has_pace: bool
    """Whether on the stage of trials too."""
    stages: Annotated[tuple[StageRef, ...], Field(max_length=MAX_TIMED_STAGES)] = ()
    """Of those that are loaded."""
    peers: Peers = ()
    """They have been told to meet this node."""


class Drain(Contract):
    """C->W: take no new seats."""

    type: Literal["drain"] = "drain"
    reason: str


def _bounded_facts(facts: StageFacts) -> StageFacts:
    if max(len(facts.numerics_class), len(facts.self_test_digest)) > MAX_FACT:
        raise ValueError(f"class and digest have at most {MAX_FACT} characters")
    if facts.small_rows is not None and facts.small_rows < 1:
        raise ValueError("small_rows should be 1 or more")
    return facts


Facts = Annotated[StageFacts, AfterValidator(_bounded_facts)]


class StageReady(Contract):
    """W->C: a stage asked for is loaded, or could not be (`error_code` and `error`)."""

    type: Literal["stage_ready"] = "stage_ready"
    stage_ref: StageRef
    load_ms: float = 0.0
    holds: bool = True
    """As in `LoadStage`."""
    facts: Facts | None = None
    """Of a stage that is loaded, or tested."""
    error_code: str | None = None
    error: str = ""


class SeatReady(SessionMessage):
    """W->C: a seat that was not ready in the answer to its assignment is now (or failed)."""

    type: Literal["seat_ready"] = "seat_ready"
    lane: int
    stage: int
    error_code: str | None = None
    error: str = ""


class Draft(SessionMessage):
    """New tokens of one session. `first_position` is the position of the first of `records`' tokens in the sequence."""

    lane: int = 0
    first_position: int
    records: tuple[TokenRecord, ...]


class DraftTokens(Contract):
    """W->C: the last stage's new tokens, of many sessions at once."""

    type: Literal["draft_tokens"] = "draft_tokens"
    drafts: Annotated[tuple[Draft, ...], Field(max_length=MAX_DRAFTS_PER_MESSAGE)]


class ReceiptPosted(SessionMessage):
    """W->C: this seat has computed a window. The barrier of a window is complete when every seat has posted."""

    type: Literal["receipt_posted"] = "receipt_posted"
    lane: int
    stage: int
    window: int
    receipt: SignedText
    records: Annotated[tuple[TokenRecord, ...], Field(max_length=MAX_PREFIX_TOKENS)] = ()
    """Last stage of an audit lane: its own sample records of the window."""


class SessionFault(SessionMessage):
    """W->C: this seat cannot go on (engine fault, lost slot, no space)."""

    type: Literal["session_fault"] = "session_fault"
    lane: int
    stage: int
    error_code: str
    error: str


class LinkFault(Contract):
    """W->C: the link to or from a peer broke, or the peer sent what it must not. Accuses nobody by itself."""

    type: Literal["link_fault"] = "link_fault"
    peer: Annotated[NodeId, Field(max_length=128)]
    outgoing: bool
    kind: Literal["broken", "refused"] = "broken"
    """Refused: the peer sent what no honest node sends (rule 7)."""
    reason: str = Field(max_length=500)


class NodeMeasured(Contract):
    """W->C: what became of `MeasureNode`. What is missing could not be measured now: sessions came first."""

    type: Literal["node_measured"] = "node_measured"
    pace: Pace | None = None
    stages: Annotated[tuple[StageTimes, ...], Field(max_length=MAX_TIMED_STAGES)] = ()
    links: Annotated[tuple[PeerLink, ...], Field(max_length=MAX_LINKS)] = ()


class SessionPosition(SessionMessage):
    """How far a seat is."""

    lane: int
    stage: int
    rows: int


def _bounded_drift(drift: Drift | None) -> Drift | None:
    if drift is not None:
        factors = (drift.wall, drift.cpu, drift.batch, drift.chunk)
        if (
            not all(factor is None or 0 < factor < math.inf for factor in factors)
            or not 0 <= drift.handling_s < math.inf
        ):
            raise ValueError("factors are above 0, times not below, and all are finite")
    return drift


class Heartbeat(Contract):
    """W->C, every `heartbeat_ms`."""

    type: Literal["heartbeat"] = "heartbeat"
    boot_id: str
    stages: Annotated[tuple[StageRef, ...], Field(max_length=MAX_STAGES_PER_NODE)] = ()
    """Stages loaded now."""
    slots_used: int = 0
    slots_elsewhere: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=MAX_STAGES_PER_NODE)] = ()
    """Of each of `stages`, in their order: slots that sessions of other coordinators hold. Empty: none."""
    sessions: Annotated[tuple[SessionPosition, ...], Field(max_length=4_096)] = ()
    timer_lag_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """By how much the wait for this beat took longer than it should."""
    draining: bool = False
    drift: Annotated[Drift | None, AfterValidator(_bounded_drift)] = None
    """None: no calls of late."""


class Leave(Contract):
    """W->C: a worker that stops on purpose says so: it is gone at once from every view."""

    type: Literal["leave"] = "leave"
    boot_id: str


class Ack(Contract):
    """The answer to every message. `ready`: for LoadStage and WorkAssignment, see there."""

    ready: bool = True
    facts: Facts | None = None
    """LoadStage: of a stage that is ready, or tested."""
    coordinators: tuple[str, ...] = ()
    """Heartbeat: as in `Registered`."""


AnyToWorker = (
    LoadStage
    | WorkAssignment
    | SessionStart
    | SessionStop
    | WindowRelease
    | SealWindow
    | WindowCommitted
    | MeetPeers
    | MeasureNode
    | Drain
)
AnyToCoordinator = (
    StageReady | SeatReady | DraftTokens | ReceiptPosted | SessionFault | LinkFault | NodeMeasured | Heartbeat | Leave
)
ToWorker = Annotated[AnyToWorker, Field(discriminator="type")]
ToCoordinator = Annotated[AnyToCoordinator, Field(discriminator="type")]

to_worker: TypeAdapter[AnyToWorker] = TypeAdapter(ToWorker)
to_coordinator: TypeAdapter[AnyToCoordinator] = TypeAdapter(ToCoordinator)
