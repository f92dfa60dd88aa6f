"""Everything that can have happened: one closed list of events, in the past tense.

An event carries no time (its envelope does), no prompt and no secret. Ids are strings; durations in ms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal, get_args

from pydantic import Field

from shared.contracts.peer_state import BreakerState
from shared.domain.tail_state import TailState

Count = Annotated[int, Field(ge=0, le=2**53)]
DurationMs = Annotated[float, Field(ge=0, le=1e12)]
Share = Annotated[float, Field(ge=-1e12, le=1e12)]
LinkKind = Literal["gateway", "control", "stage"]
StepRole = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class TaskSubmitted:
    task_id: str
    priority: Count


@dataclass(frozen=True, slots=True)
class TaskEnqueued:
    task_id: str
    queue_size: Count
    """Tasks waiting, this one included."""


@dataclass(frozen=True, slots=True)
class TaskDispatching:
    task_id: str


@dataclass(frozen=True, slots=True)
class TaskDispatched:
    task_id: str


@dataclass(frozen=True, slots=True)
class PartitionComputed:
    num_partitions: Count
    duration_ms: DurationMs
    strategy: str


@dataclass(frozen=True, slots=True)
class PartitionCacheHit:
    cache: str = "plan"


@dataclass(frozen=True, slots=True)
class PartitionCacheMiss:
    cache: str = "plan"


@dataclass(frozen=True, slots=True)
class PipelinesChanged:
    """New sessions of a model go by other plans than before; those that run keep theirs. `reason`: nodes (the former
    plans lost theirs), gain (worth it) or fresh (as configured, whenever the nodes change)."""

    model_id: str
    before: Count
    """Pipelines."""
    after: Count
    reason: str
    gain: Share
    """Predicted share of the time per token that is saved; below 0 it takes longer, 1 when nothing else was left."""


@dataclass(frozen=True, slots=True)
class PhaseTransition:
    """A session went from one phase to the next (`shared.domain.session.SessionPhase`)."""

    from_phase: str
    to_phase: str
    task_id: str = ""


@dataclass(frozen=True, slots=True)
class ConsensusReached:
    task_id: str
    rounds: Count
    duration_ms: DurationMs


@dataclass(frozen=True, slots=True)
class MessageSent:
    to_node: str
    size_bytes: Count
    message_type: str


@dataclass(frozen=True, slots=True)
class MessageReceived:
    from_node: str
    size_bytes: Count
    message_type: str


@dataclass(frozen=True, slots=True)
class BytesTransferred:
    """Told by the sender. Gateway: api to client; control: between services; stage: between workers."""

    from_node: str
    to_node: str
    size_bytes: Count
    duration_ms: DurationMs
    link: LinkKind = "stage"


@dataclass(frozen=True, slots=True)
class NodeFailure:
    """A node was given up. `reason`: lease, evidence or operator."""

    node_id: str
    evidence: str
    reason: str = "lease"


@dataclass(frozen=True, slots=True)
class TaskCompleted:
    """Told once, by whoever's write made the task terminal. `latency_ms`: from submission."""

    task_id: str
    latency_ms: DurationMs
    nodes_involved: tuple[str, ...] = ()
    verification: str = "none"


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """`error` is the error's code. Told once, by whoever's write made the task terminal."""

    task_id: str
    error: str
    latency_ms: DurationMs | None = None
    verification: str = "none"


@dataclass(frozen=True, slots=True)
class TaskCancelled:
    task_id: str
    latency_ms: DurationMs | None = None
    verification: str = "none"


@dataclass(frozen=True, slots=True)
class NodeJoined:
    node_id: str
    address: str
    """host:port at which the worker serves, /metrics included."""
    incarnation: str = ""


@dataclass(frozen=True, slots=True)
class NodeStateChanged:
    node_id: str
    from_state: str
    to_state: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class StageLoaded:
    node_id: str
    model_id: str
    start: Count
    end: Count
    """Layers [start, end)."""
    weight_bytes: Count
    duration_ms: DurationMs


@dataclass(frozen=True, slots=True)
class SessionOpened:
    task_id: str
    epoch: Count
    num_stages: Count


@dataclass(frozen=True, slots=True)
class SessionReassigned:
    """`epoch` is the new one; `duration_ms` runs from the noticed loss until the session went on."""

    task_id: str
    epoch: Count
    reason: str
    duration_ms: DurationMs


@dataclass(frozen=True, slots=True)
class GuaranteeReduced:
    """A verified session goes on with fewer nodes than one is admitted with. Safety does not rest on what it lacks."""

    task_id: str
    epoch: Count
    blind: bool
    """No audit lane's node sees what it has to compute."""
    spare: Count
    """Nodes left to decide a dispute."""


@dataclass(frozen=True, slots=True)
class TailAuditChanged:
    """A finished answer was chosen to be computed once more by fresh nodes, or that has come to its end."""

    task_id: str
    state: TailState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AnswerRevoked:
    """Fresh nodes came to another result than those that an answer, already released, rests on."""

    task_id: str
    stage: Count
    window: Count


@dataclass(frozen=True, slots=True)
class TokensDrafted:
    """Of a verified session: computed by one node each, and believed by nobody yet."""

    task_id: str
    first_index: Count
    """Of the answer's tokens, the first of these."""
    token_ids: tuple[Count, ...]


@dataclass(frozen=True, slots=True)
class TokensCommitted:
    task_id: str
    num_tokens: Count
    waited_ms: DurationMs
    """Since the first of them was drafted."""


@dataclass(frozen=True, slots=True)
class BreakerChanged:
    peer: str
    operation: str
    state: BreakerState


@dataclass(frozen=True, slots=True)
class CallRetried:
    peer: str
    operation: str


@dataclass(frozen=True, slots=True)
class ConnectionPoolRebuilt:
    peer: str


@dataclass(frozen=True, slots=True)
class StepTimed:
    """One pass of a batch through a stage."""

    node_id: str
    stage: Count
    rows: Count
    duration_ms: DurationMs
    role: StepRole = "decode"


Event = (
    TaskSubmitted
    | TaskEnqueued
    | TaskDispatching
    | TaskDispatched
    | PartitionComputed
    | PartitionCacheHit
    | PartitionCacheMiss
    | PipelinesChanged
    | PhaseTransition
    | ConsensusReached
    | MessageSent
    | MessageReceived
    | BytesTransferred
    | NodeFailure
    | TaskCompleted
    | TaskFailed
    | TaskCancelled
    | NodeJoined
    | NodeStateChanged
    | StageLoaded
    | SessionOpened
    | SessionReassigned
    | GuaranteeReduced
    | TailAuditChanged
    | AnswerRevoked
    | TokensDrafted
    | TokensCommitted
    | BreakerChanged
    | CallRetried
    | ConnectionPoolRebuilt
    | StepTimed
)


EVENT_TYPES: Mapping[str, type[Event]] = MappingProxyType({kind.__name__: kind for kind in get_args(Event)})
"""Name on the wire → class."""


def subject_of(event: Event) -> str:
    """What the event is about: its task, else its node, else its peer, else nothing."""
    for name in ("task_id", "node_id", "peer", "to_node", "from_node"):
        value = getattr(event, name, "")
        if value:
            return str(value)
    return ""
