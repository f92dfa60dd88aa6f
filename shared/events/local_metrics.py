"""A process's own Prometheus series, fed by the events it publishes and by nothing else.

Whoever publishes an event owns its series, so sums over processes are exact. Names of the specification are kept;
all others start with `butterfly_`. Labels come from small closed sets; peers are bounded by the cluster's size.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.events.catalogue import (
    AnswerRevoked,
    BreakerChanged,
    BytesTransferred,
    CallRetried,
    ConnectionPoolRebuilt,
    ConsensusReached,
    Event,
    NodeFailure,
    PartitionCacheHit,
    PartitionCacheMiss,
    PartitionComputed,
    PipelinesChanged,
    SessionReassigned,
    StepTimed,
    TailAuditChanged,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TokensCommitted,
)
from shared.events.publisher import HttpPublisher, Publisher

TASK_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
SHORT_BUCKETS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
RECOVERY_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30)
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
BREAKER_STATES = {"closed": 0, "half-opened": 1, "opened": 2}


class LocalMetrics(Publisher):
    """Turns events into series of `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=tuple(buckets), registry=registry)

        self._tasks = counter("tasks_total", "Tasks that ended, by status.", "status")
        self._latency = histogram(
            "task_latency_seconds", "Submission to end.", TASK_BUCKETS_S, "verification", "outcome"
        )
        self._bytes = counter("bytes_transferred_total", "Bytes sent, by kind of link.", "link")
        self._partition = histogram(
            "partition_duration_seconds", "Time to compute a plan.", SHORT_BUCKETS_S, "strategy"
        )
        self._hits = counter("cache_hits_total", "Answers found in a cache.", "cache")
        self._misses = counter("cache_misses_total", "Answers not found in a cache.", "cache")
        self._rebalances = counter(
            "butterfly_pipelines_changed_total", "Changes of the plans that new sessions go by.", "reason"
        )
        self._rounds = counter("consensus_rounds_total", "Rounds of agreement.", "outcome")
        self._round = histogram(
            "consensus_round_duration_seconds", "Duration of an agreement.", SHORT_BUCKETS_S, "outcome"
        )
        self._failures = counter("node_failures_total", "Nodes given up, by reason.", "reason")
        self._recovery = histogram(
            "butterfly_recovery_seconds", "Noticed loss until the session went on.", RECOVERY_BUCKETS_S
        )
        self._tail_audits = counter(
            "butterfly_tail_audits_total", "Fresh audits of finished answers: begun, and how they ended.", "state"
        )
        self._revoked = counter("butterfly_answers_revoked_total", "Released answers found wrong.")
        self._commit = histogram(
            "butterfly_draft_to_commit_seconds", "The first token of a commit: from its draft on.", TASK_BUCKETS_S
        )
        self._step = histogram("butterfly_stage_step_seconds", "One batch through one stage.", SHORT_BUCKETS_S, "role")
        self._rows = histogram("butterfly_batch_rows", "Rows of a batch.", ROWS_BUCKETS, "role")
        self._circuit = Gauge(
            "butterfly_circuit_state",
            "0 closed, 1 half open, 2 open.",
            ("peer", "operation"),
            registry=registry,
        )
        self._retries = counter("butterfly_retries_total", "Calls tried again.", "peer", "operation")
        self._rebuilds = counter("butterfly_pool_rebuilds_total", "Connection pools made anew.", "peer")

    def publish(self, event: Event) -> None:
        match event:
            case TaskCompleted(latency_ms=latency_ms, verification=verification):
                self._task_ended("completed", verification, latency_ms)
            case TaskFailed(latency_ms=latency_ms, verification=verification):
                self._task_ended("failed", verification, latency_ms)
            case TaskCancelled(latency_ms=latency_ms, verification=verification):
                self._task_ended("cancelled", verification, latency_ms)
            case BytesTransferred(size_bytes=size_bytes, link=link):
                self._bytes.labels(link).inc(size_bytes)
            case NodeFailure(reason=reason):
                self._failures.labels(reason).inc()
            case SessionReassigned(duration_ms=duration_ms):
                self._recovery.observe(duration_ms / 1000)
            case TokensCommitted(waited_ms=waited_ms):
                self._commit.observe(waited_ms / 1000)
            case StepTimed(rows=rows, duration_ms=duration_ms, role=role):
                self._step.labels(role).observe(duration_ms / 1000)
                self._rows.labels(role).observe(rows)
            case _:
                self._publish_rare(event)

    def _publish_rare(self, event: Event) -> None:
        match event:
            case PartitionComputed() | PartitionCacheHit() | PartitionCacheMiss() | PipelinesChanged():
                self._planned(event)
            case ConsensusReached(rounds=rounds, duration_ms=duration_ms):
                self._rounds.labels("agreed").inc(rounds)
                self._round.labels("agreed").observe(duration_ms / 1000)
            case TailAuditChanged(state=state):
                self._tail_audits.labels(state).inc()
            case AnswerRevoked():
                self._revoked.inc()
            case BreakerChanged(peer=peer, operation=operation, state=state):
                self._circuit.labels(peer, operation).set(BREAKER_STATES[state])
            case CallRetried(peer=peer, operation=operation):
                self._retries.labels(peer, operation).inc()
            case ConnectionPoolRebuilt(peer=peer):
                self._rebuilds.labels(peer).inc()
            case _:
                pass  # told to the metrics service alone

    def _planned(self, event: PartitionComputed | PartitionCacheHit | PartitionCacheMiss | PipelinesChanged) -> None:
        match event:
            case PartitionComputed(duration_ms=duration_ms, strategy=strategy):
                self._partition.labels(strategy).observe(duration_ms / 1000)
            case PartitionCacheHit(cache=cache):
                self._hits.labels(cache).inc()
            case PartitionCacheMiss(cache=cache):
                self._misses.labels(cache).inc()
            case PipelinesChanged(reason=reason):
                self._rebalances.labels(reason).inc()

    def _task_ended(self, status: str, verification: str, latency_ms: float | None) -> None:
        self._tasks.labels(status).inc()
        if latency_ms is not None:
            self._latency.labels(verification, status).observe(latency_ms / 1000)


class PublisherMetrics(Collector):
    """How many events this process published and dropped, read at each scrape."""

    def __init__(self, publisher: HttpPublisher) -> None:
        self._publisher = publisher

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily("butterfly_events_published", "Events published.", value=self._publisher.published)
        yield CounterMetricFamily("butterfly_events_dropped", "Events lost.", value=self._publisher.dropped)
