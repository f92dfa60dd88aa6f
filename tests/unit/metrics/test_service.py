import pytest

from services.metrics.broadcast import Broadcast
from services.metrics.collectors import InMemoryCollector, MetricsCollector, PrometheusCollector
from services.metrics.service import MetricsService
from shared.contracts.metrics import EventBatch
from shared.domain.errors import NodeNotFound
from shared.events.catalogue import (
    BreakerChanged,
    BytesTransferred,
    Event,
    NodeFailure,
    NodeJoined,
    NodeStateChanged,
    StageLoaded,
    StepTimed,
    TaskCompleted,
    TaskFailed,
    TaskSubmitted,
    TokensCommitted,
)
from shared.events.publisher import envelope_of
from tests.fakes.clock import FakeClock


class Metrics:
    def __init__(self, collector: MetricsCollector | None = None) -> None:
        self.clock = FakeClock()
        self.service = MetricsService(
            collector=collector or PrometheusCollector(retention_s=3_600), broadcast=Broadcast(), clock=self.clock
        )

    def take(
        self, *events: Event, source: str = "coordinator", address: str = "", dropped: int = 0, trusted: bool = True
    ) -> None:
        envelopes = tuple(
            envelope_of(event, event_id=f"b-{number}", at_s=self.clock.wall_s() - 1.5, source=source)
            for number, event in enumerate(events)
        )
        batch = EventBatch(source=source, address=address, dropped_total=dropped, events=envelopes)
        self.service.take(batch, is_trusted=trusted)


@pytest.mark.parametrize("kind", [InMemoryCollector, PrometheusCollector])
def test_a_snapshot_adds_events_up(kind: type[InMemoryCollector]) -> None:
    metrics = Metrics(kind(retention_s=3_600))
    metrics.take(
        TaskSubmitted("t1", 0),
        TaskCompleted("t1", 100.0),
        TaskFailed("t2", "no_capacity"),
        TokensCommitted("t1", 12, 3.0),
        BytesTransferred("a", "b", 10, 1.0),
        NodeFailure("n1", "lease over"),
    )
    snapshot = metrics.service.snapshot()
    assert (snapshot.tasks_submitted, snapshot.tasks_completed, snapshot.tasks_failed) == (1, 1, 1)
    assert snapshot.task_latency.p50_ms == pytest.approx(100.0, rel=0.01)
    assert (snapshot.tokens_committed, snapshot.bytes_transferred, snapshot.node_failures) == (12, {"stage": 10}, 1)
    assert snapshot.reception.events_received["TaskCompleted"] == 1
    assert snapshot.reception.batch_age_s == pytest.approx(1.5)
    assert (snapshot.window_s, snapshot.quantile_relative_error) == (3_600, 0.01)
    text = metrics.service.export_prometheus().decode()
    assert 'tasks_total{status="completed"} 1.0' in text
    assert 'bytes_transferred_total{link="stage"} 10.0' in text
    assert "quantile=" not in text


@pytest.mark.parametrize("kind", [InMemoryCollector, PrometheusCollector])
def test_a_node_whose_loss_every_coordinator_tells_is_lost_once(kind: type[InMemoryCollector]) -> None:
    metrics = Metrics(kind(retention_s=3_600))
    joined, lost = NodeJoined("n1", "a:1", "boot-1"), NodeStateChanged("n1", "ready", "lost", "a:1")
    for _ in range(2):  # it comes back, and is lost again
        metrics.take(joined, NodeFailure("n1", "", "lease"), lost, NodeFailure("n1", "", "lease"), lost)
    assert metrics.service.snapshot().node_failures == 2
    assert metrics.service.node("n1").failures == 2
    exported = metrics.service.export_prometheus().decode()
    assert sum(float(line.split()[-1]) for line in exported.splitlines() if line.startswith("node_failures_total")) == 2


async def test_the_latency_query_looks_back_only_so_far() -> None:
    metrics = Metrics()
    metrics.take(TaskCompleted("t1", 100.0))
    await metrics.clock.advance(600)
    metrics.take(TaskCompleted("t2", 200.0))
    assert metrics.service.task_latency(since_s=0).count == 2
    assert metrics.service.task_latency(since_s=metrics.clock.wall_s() - 60).count == 1


async def test_utilization_tells_rates_nodes_and_open_circuits() -> None:
    metrics = Metrics()
    metrics.take(NodeJoined("n1", "10.0.0.1:8090"), NodeStateChanged("n1", "joining", "ready"))
    metrics.take(TokensCommitted("t1", 600, 3.0), BreakerChanged("n1", "link", "opened"))
    await metrics.clock.advance(60)
    utilization = metrics.service.system()
    assert utilization.tokens_per_s == 10
    assert utilization.nodes == {"ready": 1}
    assert utilization.open_circuits == ("coordinator -> n1 (link)",)
    metrics.take(BreakerChanged("n1", "link", "closed"))
    assert metrics.service.system().open_circuits == ()


def test_a_nodes_health_gathers_what_is_told_of_it() -> None:
    metrics = Metrics()
    metrics.take(NodeJoined("n1", "10.0.0.1:8090"))
    metrics.take(StageLoaded("n1", "smollm2", 0, 10, 1, 1.0), StepTimed("n1", 0, 1, 8.0), source="n1", trusted=False)
    health = metrics.service.node("n1")
    assert (health.state, health.address, health.stages) == ("joining", "10.0.0.1:8090", ("smollm2:0-10",))
    assert health.step.p50_ms == pytest.approx(8.0, rel=0.01)
    with pytest.raises(NodeNotFound):
        metrics.service.node("n2")


def test_a_worker_cannot_invent_tasks_nodes_or_sources() -> None:
    metrics = Metrics()
    metrics.take(TaskCompleted("t1", 1.0), source="evil", trusted=False)
    metrics.take(StepTimed("made-up", 0, 1, 1.0), source="evil", trusted=False)
    assert metrics.service.snapshot().tasks_completed == 0
    assert metrics.service.snapshot().reception.events_refused == 1
    with pytest.raises(NodeNotFound):
        metrics.service.node("made-up")


def test_an_envelope_in_another_name_than_its_batch_is_refused() -> None:
    metrics = Metrics()
    envelope = envelope_of(TaskSubmitted("t1", 0), event_id="b-1", at_s=1.0, source="scheduler")
    metrics.service.take(EventBatch(source="evil", events=(envelope,)), is_trusted=True)
    assert metrics.service.snapshot().reception.events_refused == 1


def test_drops_are_summed_over_sources_and_their_restarts() -> None:
    metrics = Metrics()
    for source, dropped in [("a", 5), ("a", 8), ("b", 1), ("a", 2)]:
        metrics.take(source=source, dropped=dropped)
    assert metrics.service.snapshot().reception.events_dropped == 8 + 1 + 2


async def test_discovery_lists_services_that_announce_themselves_and_nodes_that_joined() -> None:
    metrics = Metrics()
    metrics.take(source="api", address="10.0.0.9:8080")
    metrics.take(NodeJoined("n1", "10.0.0.1:8090"), NodeJoined("n2", "10.0.0.2:8090"))
    metrics.take(NodeStateChanged("n2", "ready", "lost"))
    metrics.take(source="evil", address="10.0.0.66:22", trusted=False)
    targets = {target.targets[0]: target.labels for target in metrics.service.scrape_targets()}
    assert targets == {
        "10.0.0.9:8080": {"service": "api"},
        "10.0.0.1:8090": {"service": "worker", "node_id": "n1"},
    }
    await metrics.clock.advance(61)
    assert [target.targets[0] for target in metrics.service.scrape_targets()] == ["10.0.0.1:8090"]
