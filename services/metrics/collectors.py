"""Collectors: what events add up to, in memory alone or with a Prometheus roll-up beside it."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from services.metrics.domain.nodes import NodeRecord, NodeRecords
from services.metrics.domain.sketch import RELATIVE_ERROR, QuantileSketch
from services.metrics.domain.windows import RateWindow, SketchWindow
from shared.contracts.metrics import MetricsSnapshot, NodeHealth, Quantiles, Reception, SystemUtilization
from shared.domain.errors import NodeNotFound
from shared.domain.session import NodeState
from shared.events.catalogue import (
    BreakerChanged,
    BytesTransferred,
    ConsensusReached,
    Event,
    NodeFailure,
    PartitionCacheHit,
    PartitionCacheMiss,
    PartitionComputed,
    SessionReassigned,
    StepTimed,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskSubmitted,
    TokensCommitted,
)
from shared.events.local_metrics import LocalMetrics

MAX_CIRCUITS = 1_024
GONE = frozenset({NodeState.LOST, NodeState.EVICTED})


class MetricsCollector(ABC):
    """Takes every event and answers questions about their sum. All times are Unix seconds of this service."""

    @abstractmethod
    def process_event(self, event: Event, *, source: str, at_s: float, is_trusted: bool) -> None:
        """Count one event that `source` told and that arrived at `at_s`; not trusted: a worker's claim."""

    @abstractmethod
    def task_latency(self, *, since_s: float, now_s: float) -> Quantiles:
        """Of completed tasks, since `since_s` or over the whole window, whichever is shorter."""

    @abstractmethod
    def system(self, *, now_s: float) -> SystemUtilization: ...

    @abstractmethod
    def node(self, node_id: str, *, now_s: float) -> NodeHealth:
        """Raises `NodeNotFound` for a node that no event named."""

    @abstractmethod
    def snapshot(self, reception: Reception, *, now_s: float) -> MetricsSnapshot: ...

    @abstractmethod
    def nodes(self) -> Mapping[str, NodeRecord]:
        """Every node that events told of, by its id."""

    @abstractmethod
    def export_prometheus(self) -> bytes:
        """The roll-up under the specification's names, in the text exposition format."""


class _Totals:
    """Counts since the start and quantiles over the window."""

    def __init__(self, retention_s: int) -> None:
        self.window_s = retention_s
        self.task_latency = SketchWindow(retention_s)
        self.partition_duration = SketchWindow(retention_s)
        self.stage_step = SketchWindow(retention_s)
        self.recovery = SketchWindow(retention_s)
        self.tasks: Counter[str] = Counter()
        self.bytes_by_link: Counter[str] = Counter()
        self.tokens_committed = 0
        self.consensus_rounds = 0
        self.consensus_reached = 0
        self.node_failures = 0


class InMemoryCollector(MetricsCollector):
    def __init__(self, *, retention_s: int) -> None:
        self._totals = _Totals(retention_s)
        self._nodes = NodeRecords(retention_s)
        self._tasks_rate, self._tokens_rate, self._bytes_rate = RateWindow(), RateWindow(), RateWindow()
        self._open_circuits: set[str] = set()

    def process_event(self, event: Event, *, source: str, at_s: float, is_trusted: bool) -> None:
        if self._is_known(event):
            return
        totals = self._totals
        self._nodes.apply(event, at_s=at_s, is_trusted=is_trusted)
        match event:
            case TaskSubmitted():
                totals.tasks["submitted"] += 1
            case TaskCompleted(latency_ms=latency_ms):
                totals.tasks["completed"] += 1
                totals.task_latency.add(latency_ms, at_s=at_s)
                self._tasks_rate.add(1, at_s=at_s)
            case TaskFailed():
                totals.tasks["failed"] += 1
            case TaskCancelled():
                totals.tasks["cancelled"] += 1
            case TokensCommitted(num_tokens=num_tokens):
                totals.tokens_committed += num_tokens
                self._tokens_rate.add(num_tokens, at_s=at_s)
            case BytesTransferred(size_bytes=size_bytes, link=link):
                totals.bytes_by_link[link] += size_bytes
                self._bytes_rate.add(size_bytes, at_s=at_s)
            case StepTimed(duration_ms=duration_ms):
                totals.stage_step.add(duration_ms, at_s=at_s)
            case _:
                self._process_rare(event, source=source, at_s=at_s)

    def task_latency(self, *, since_s: float, now_s: float) -> Quantiles:
        return quantiles(self._totals.task_latency.merged(now_s=now_s, since_s=since_s))

    def system(self, *, now_s: float) -> SystemUtilization:
        return SystemUtilization(
            time=now_s,
            tasks_per_s=self._tasks_rate.per_s(now_s=now_s),
            tokens_per_s=self._tokens_rate.per_s(now_s=now_s),
            bytes_per_s=self._bytes_rate.per_s(now_s=now_s),
            nodes=dict(Counter(record.state for record in self._nodes.all().values())),
            open_circuits=tuple(sorted(self._open_circuits)),
        )

    def node(self, node_id: str, *, now_s: float) -> NodeHealth:
        record = self._nodes.get(node_id)
        if record is None:
            raise NodeNotFound(f"no event has named a node {node_id[:64]!r}")
        return NodeHealth(
            node_id=node_id,
            state=record.state,
            address=record.address,
            failures=record.failures,
            last_event_time=record.last_event_s,
            stages=tuple(record.stages),
            step=quantiles(record.step.merged(now_s=now_s)),
        )

    def snapshot(self, reception: Reception, *, now_s: float) -> MetricsSnapshot:
        totals = self._totals
        return MetricsSnapshot(
            time=now_s,
            window_s=totals.window_s,
            quantile_relative_error=RELATIVE_ERROR,
            task_latency=quantiles(totals.task_latency.merged(now_s=now_s)),
            partition_duration=quantiles(totals.partition_duration.merged(now_s=now_s)),
            stage_step=quantiles(totals.stage_step.merged(now_s=now_s)),
            recovery=quantiles(totals.recovery.merged(now_s=now_s)),
            tasks_submitted=totals.tasks["submitted"],
            tasks_completed=totals.tasks["completed"],
            tasks_failed=totals.tasks["failed"],
            tasks_cancelled=totals.tasks["cancelled"],
            tokens_committed=totals.tokens_committed,
            consensus_rounds_avg=(
                totals.consensus_rounds / totals.consensus_reached if totals.consensus_reached else None
            ),
            bytes_transferred=dict(totals.bytes_by_link),
            node_failures=totals.node_failures,
            reception=reception,
        )

    def nodes(self) -> Mapping[str, NodeRecord]:
        return self._nodes.all()

    def export_prometheus(self) -> bytes:
        registry = CollectorRegistry()
        registry.register(_Exported(self._totals))
        return generate_latest(registry)

    def _is_known(self, event: Event) -> bool:
        """Each coordinator tells of a node that is gone: the first word counts."""
        record = self._nodes.get(event.node_id) if isinstance(event, NodeFailure) else None
        return record is not None and record.state in GONE

    def _process_rare(self, event: Event, *, source: str, at_s: float) -> None:
        totals = self._totals
        match event:
            case PartitionComputed(duration_ms=duration_ms):
                totals.partition_duration.add(duration_ms, at_s=at_s)
            case SessionReassigned(duration_ms=duration_ms):
                totals.recovery.add(duration_ms, at_s=at_s)
            case ConsensusReached(rounds=rounds):
                totals.consensus_rounds += rounds
                totals.consensus_reached += 1
            case NodeFailure():
                totals.node_failures += 1
            case BreakerChanged(peer=peer, operation=operation, state=state):
                circuit = f"{source} -> {peer} ({operation})"
                if state == "closed":
                    self._open_circuits.discard(circuit)
                elif len(self._open_circuits) < MAX_CIRCUITS:
                    self._open_circuits.add(circuit)
            case _:
                pass  # counted by its type alone


class PrometheusCollector(InMemoryCollector):
    """Keeps histograms as well, so that the roll-up has all series of the specification."""

    _ROLLED_UP = (
        TaskCompleted
        | TaskFailed
        | TaskCancelled
        | BytesTransferred
        | PartitionComputed
        | PartitionCacheHit
        | PartitionCacheMiss
        | ConsensusReached
        | NodeFailure
    )

    def __init__(self, *, retention_s: int) -> None:
        super().__init__(retention_s=retention_s)
        self._registry = CollectorRegistry()
        self._series = LocalMetrics(self._registry)

    def process_event(self, event: Event, *, source: str, at_s: float, is_trusted: bool) -> None:
        is_counted = isinstance(event, self._ROLLED_UP) and not self._is_known(event)
        super().process_event(event, source=source, at_s=at_s, is_trusted=is_trusted)
        if is_counted:
            self._series.publish(event)

    def export_prometheus(self) -> bytes:
        return generate_latest(self._registry)


class _Exported(Collector):
    def __init__(self, totals: _Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        tasks = CounterMetricFamily("tasks", "Tasks that ended, by status.", labels=["status"])
        for status in ("completed", "failed", "cancelled"):
            tasks.add_metric([status], self._totals.tasks[status])
        yield tasks
        sent = CounterMetricFamily("bytes_transferred", "Bytes sent, by kind of link.", labels=["link"])
        for link, size_bytes in self._totals.bytes_by_link.items():
            sent.add_metric([link], size_bytes)
        yield sent
        yield CounterMetricFamily("node_failures", "Nodes given up.", value=self._totals.node_failures)


def quantiles(sketch: QuantileSketch) -> Quantiles:
    return Quantiles(
        count=sketch.count,
        mean_ms=sketch.mean(),
        p50_ms=sketch.quantile(0.5),
        p95_ms=sketch.quantile(0.95),
        p99_ms=sketch.quantile(0.99),
    )
