"""The scheduler's own Prometheus series. Every replica tells the same queue: take the maximum over them."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.registry.base import QueueView, TaskRegistry
from shared.runtime.clock import Clock

LOOK_EVERY_S = 2.0


class QueueWatch:
    """Knows how the queue was a moment ago: a scrape must not wait for the registry."""

    def __init__(self, *, registry: TaskRegistry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self.view: QueueView | None = None

    async def run_once(self) -> None:
        """To be called in a loop."""
        self.view = await self._registry.queue()
        await self._clock.sleep(LOOK_EVERY_S)


class SchedulerMetrics(Collector):
    def __init__(self, watch: QueueWatch, mended: Mapping[str, int]) -> None:
        """`mended`: tasks since the start, by what the reconciler did."""
        self._watch = watch
        self._mended = mended

    def collect(self) -> Iterable[Metric]:
        view = self._watch.view
        if view is not None:
            depth = GaugeMetricFamily("butterfly_queue_depth", "Queued tasks.", labels=["priority"])
            for priority, count in (view.by_priority or {0: 0}).items():
                depth.add_metric([str(priority)], count)
            yield depth
            yield GaugeMetricFamily(
                "butterfly_queue_oldest_age_seconds", "Age of the oldest queued task.", value=view.oldest_age_s or 0.0
            )
            yield GaugeMetricFamily(
                "butterfly_tasks_running", "Unfinished tasks that are not queued.", value=view.running
            )
        mended = CounterMetricFamily("butterfly_reconciled", "Tasks mended by the reconciler.", labels=["reason"])
        for reason, count in self._mended.items():
            mended.add_metric([reason], count)
        yield mended
