from prometheus_client import CollectorRegistry

from shared.domain.tail_state import TailState
from shared.events.catalogue import (
    AnswerRevoked,
    BreakerChanged,
    BytesTransferred,
    NodeFailure,
    PartitionCacheHit,
    PartitionComputed,
    PipelinesChanged,
    StepTimed,
    TailAuditChanged,
    TaskCancelled,
    TaskCompleted,
    TaskDispatched,
    TaskFailed,
    TokensCommitted,
)
from shared.events.local_metrics import LocalMetrics
from shared.events.peer_hooks import peer_hooks
from shared.resilience.hooks import BreakerChange, BytesSent, Retried
from tests.fakes.clock import FakeClock
from tests.fakes.events import RecordingPublisher


def test_series_keep_the_names_of_the_specification() -> None:
    registry = CollectorRegistry()
    metrics = LocalMetrics(registry)
    for event in (
        TaskCompleted("t1", 1500.0),
        TaskFailed("t2", "no_capacity"),
        TaskCancelled("t3"),
        BytesTransferred("a", "b", 1000, 1.0),
        PartitionComputed(3, 2.0, "load_balanced"),
        PartitionCacheHit(),
        PipelinesChanged("m", 1, 2, "gain", 0.5),
        NodeFailure("n1", "lease over"),
        TailAuditChanged("t1", TailState.PENDING),
        TailAuditChanged("t1", TailState.FAILED, "another result"),
        AnswerRevoked("t1", 1, 2),
        StepTimed("n1", 0, 4, 10.0),
        BreakerChanged("metrics", "control", "opened"),
        TaskDispatched("t1"),
        TokensCommitted("t1", 40, 500.0),
    ):
        metrics.publish(event)
    value = registry.get_sample_value
    assert value("tasks_total", {"status": "completed"}) == 1
    assert value("tasks_total", {"status": "failed"}) == 1
    assert value("tasks_total", {"status": "cancelled"}) == 1
    assert value("task_latency_seconds_sum", {"verification": "none", "outcome": "completed"}) == 1.5
    assert value("bytes_transferred_total", {"link": "stage"}) == 1000
    assert value("partition_duration_seconds_count", {"strategy": "load_balanced"}) == 1
    assert value("cache_hits_total", {"cache": "plan"}) == 1
    assert value("butterfly_pipelines_changed_total", {"reason": "gain"}) == 1
    assert value("node_failures_total", {"reason": "lease"}) == 1
    for state, count in (("pending", 1), ("failed", 1), ("passed", None)):
        assert value("butterfly_tail_audits_total", {"state": state}) == count
    assert value("butterfly_answers_revoked_total") == 1
    assert value("butterfly_draft_to_commit_seconds_sum") == 0.5
    assert value("butterfly_batch_rows_sum", {"role": "decode"}) == 4
    assert value("butterfly_circuit_state", {"peer": "metrics", "operation": "control"}) == 2


async def test_hooks_of_callers_become_events_and_bytes_are_summed_per_second() -> None:
    clock, events = FakeClock(), RecordingPublisher()
    hooks = peer_hooks(events, source="api", now=clock.now_s)
    hooks.breaker_changed(BreakerChange("scheduler", "control", "opened"))
    hooks.retried(Retried("scheduler", "control", 1, 0.1))
    assert [type(event).__name__ for event in events.events] == ["BreakerChanged", "CallRetried"]
    for _ in range(10):
        hooks.bytes_sent(BytesSent("scheduler", "control", 100, 0.001))
    assert not events.of(BytesTransferred)
    await clock.advance(1.0)
    hooks.bytes_sent(BytesSent("scheduler", "control", 100, 0.001))
    (sent,) = events.of(BytesTransferred)
    assert (sent.from_node, sent.to_node, sent.size_bytes, sent.link) == ("api", "scheduler", 1100, "control")
