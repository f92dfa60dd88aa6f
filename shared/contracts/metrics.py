"""HTTP bodies of the metrics service. Workers post here too, so every size has a bound."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

MAX_BATCH_EVENTS = 500
MAX_TEXT = 256
MAX_NAMES = 256

ShortText = Annotated[str, StringConstraints(strict=True, max_length=MAX_TEXT)]
WholeNumber = Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]
Number = Annotated[FiniteFloat, Field(strict=True)]
Names = Annotated[tuple[ShortText, ...], Field(max_length=MAX_NAMES)]
WholeNumbers = Annotated[tuple[WholeNumber, ...], Field(max_length=MAX_NAMES)]
EventValue = Annotated[bool, Field(strict=True)] | WholeNumber | Number | ShortText | Names | WholeNumbers | None


class EventEnvelope(BaseModel):
    """One event as it travels. `data` holds the fields of the catalogue's class named by `type`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)]
    time: Annotated[FiniteFloat, Field(ge=0, le=1e11)]
    """Seconds since the Unix epoch, by the clock of the source."""
    type: ShortText
    source: ShortText
    """Name of the service, or id of the node, that says so."""
    subject: ShortText
    data: Annotated[dict[ShortText, EventValue], Field(max_length=16)]


class EventBatch(BaseModel):
    """What a publisher sends at once. An empty batch only announces the source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: ShortText
    address: ShortText = ""
    """host:port where the source serves its own /metrics; empty: nowhere."""
    dropped_total: Annotated[int, Field(strict=True, ge=0, le=2**53)] = 0
    """Events this source has dropped since it started."""
    events: Annotated[tuple[EventEnvelope, ...], Field(max_length=MAX_BATCH_EVENTS)] = ()


class Quantiles(BaseModel):
    """Of the values of one window, in milliseconds; None while there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Reception(BaseModel):
    """How the events themselves fare."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events_received: dict[str, int]
    """Per type."""
    events_refused: int
    """Not in the catalogue, breaking its bounds, or told by one who may not."""
    events_dropped: int
    """Lost before they came here, as their sources count."""
    subscribers: int
    batch_age_s: float | None
    """How long the oldest event of the latest batch had waited, by its source's clock; None before the first."""


class MetricsSnapshot(BaseModel):
    """What the events since the start of the metrics service add up to. Events are lossy: so is this."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: float
    source: str = "events"
    window_s: int
    """The quantiles look back this far; the counts since the start."""
    quantile_relative_error: float
    task_latency: Quantiles
    partition_duration: Quantiles
    stage_step: Quantiles
    """As claimed by the workers."""
    recovery: Quantiles
    tasks_submitted: int
    tasks_completed: int
    tasks_failed: int
    tasks_cancelled: int
    tokens_committed: int
    consensus_rounds_avg: float | None
    bytes_transferred: dict[str, int]
    """Per kind of link."""
    node_failures: int
    reception: Reception


class SystemUtilization(BaseModel):
    """Rates over the last whole minute, and what is wrong now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: float
    tasks_per_s: float
    tokens_per_s: float
    bytes_per_s: float
    nodes: dict[str, int]
    """Number of nodes per state."""
    open_circuits: tuple[str, ...]
    """`source -> peer (operation)`."""


class NodeHealth(BaseModel):
    """One node as events tell of it; steps and stages are the node's own claims."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_id: str
    state: str
    address: str
    failures: int
    last_event_time: float
    stages: tuple[str, ...]
    """`model:start-end`, as loaded since the node joined."""
    step: Quantiles


class ScrapeTarget(BaseModel):
    """One entry of Prometheus' HTTP service discovery."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    targets: tuple[str, ...]
    labels: dict[str, str]
