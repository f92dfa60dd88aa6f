"""Takes what others publish and answers what it adds up to."""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import AbstractContextManager

from services.metrics.broadcast import Broadcast, Subscription, Wanted
from services.metrics.collectors import MetricsCollector
from services.metrics.decode import decode_event
from services.metrics.domain.targets import Announcements, scrape_targets
from shared.contracts.metrics import (
    EventBatch,
    MetricsSnapshot,
    NodeHealth,
    Quantiles,
    Reception,
    ScrapeTarget,
    SystemUtilization,
)
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

MAX_SOURCES = 1_024


class MetricsInterface(ABC):
    @abstractmethod
    def take(self, batch: EventBatch, *, is_trusted: bool) -> None:
        """Count a batch. Not trusted: the sender showed no service token, so its events are a worker's claims.

        Events that are unknown, break their bounds or are not the sender's to tell are counted and left out.
        """

    @abstractmethod
    def snapshot(self) -> MetricsSnapshot: ...

    @abstractmethod
    def task_latency(self, *, since_s: float) -> Quantiles:
        """Of tasks completed since `since_s` (Unix seconds, whole minutes), at most over the window."""

    @abstractmethod
    def system(self) -> SystemUtilization: ...

    @abstractmethod
    def node(self, node_id: str) -> NodeHealth:
        """Raises `NodeNotFound`."""

    @abstractmethod
    def scrape_targets(self) -> list[ScrapeTarget]: ...

    @abstractmethod
    def export_prometheus(self) -> bytes:
        """The roll-up; not to be scraped beside the services' own /metrics: the series would count twice."""

    @abstractmethod
    def subscribed(self, wanted: Wanted) -> AbstractContextManager[Subscription]:
        """The events to come, as they come; raises `Unavailable` when too many listen."""


class MetricsService(MetricsInterface):
    def __init__(self, *, collector: MetricsCollector, broadcast: Broadcast, clock: Clock) -> None:
        self._collector = collector
        self._broadcast = broadcast
        self._clock = clock
        self._announcements = Announcements()
        self._received: Counter[str] = Counter()
        self._refused = 0
        self._dropped = 0
        self._dropped_by_source: dict[str, int] = {}
        self._batch_age_s: float | None = None

    def take(self, batch: EventBatch, *, is_trusted: bool) -> None:
        now_s = self._clock.wall_s()
        self._count_drops(batch)
        if is_trusted and batch.address:
            self._announcements.announce(batch.source, batch.address, at_s=now_s)
        if batch.events:
            self._batch_age_s = max(0.0, now_s - batch.events[0].time)
        for envelope in batch.events:
            event = decode_event(envelope, is_trusted=is_trusted)
            if event is None or envelope.source != batch.source:
                self._refused += 1
                continue
            self._received[envelope.type] += 1
            self._collector.process_event(event, source=batch.source, at_s=now_s, is_trusted=is_trusted)
            self._broadcast.send(envelope)

    def reception(self) -> Reception:
        return Reception(
            events_received=dict(self._received),
            events_refused=self._refused,
            events_dropped=self._dropped,
            subscribers=self._broadcast.num_subscribers,
            batch_age_s=self._batch_age_s,
        )

    def snapshot(self) -> MetricsSnapshot:
        return self._collector.snapshot(self.reception(), now_s=self._clock.wall_s())

    def task_latency(self, *, since_s: float) -> Quantiles:
        return self._collector.task_latency(since_s=since_s, now_s=self._clock.wall_s())

    def system(self) -> SystemUtilization:
        return self._collector.system(now_s=self._clock.wall_s())

    def node(self, node_id: str) -> NodeHealth:
        return self._collector.node(node_id, now_s=self._clock.wall_s())

    def scrape_targets(self) -> list[ScrapeTarget]:
        services = self._announcements.alive(now_s=self._clock.wall_s())
        return scrape_targets(services, self._collector.nodes().items())

    def export_prometheus(self) -> bytes:
        return self._collector.export_prometheus()

    def subscribed(self, wanted: Wanted) -> AbstractContextManager[Subscription]:
        return self._broadcast.subscribed(wanted)

    def log_snapshot(self) -> None:
        """The specification's periodic export."""
        log.info("metrics_snapshot", extra={"snapshot": self.snapshot().model_dump(mode="json")})

    def _count_drops(self, batch: EventBatch) -> None:
        if batch.source not in self._dropped_by_source and len(self._dropped_by_source) >= MAX_SOURCES:
            return
        before = self._dropped_by_source.get(batch.source, 0)
        # A count below the last one comes from a source that was started anew.
        self._dropped += batch.dropped_total - before if batch.dropped_total >= before else batch.dropped_total
        self._dropped_by_source[batch.source] = batch.dropped_total
