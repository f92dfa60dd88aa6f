"""The only series the metrics service owns: how the events themselves fare."""

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.contracts.metrics import Reception


class ReceptionMetrics(Collector):
    def __init__(self, reception: Callable[[], Reception]) -> None:
        self._reception = reception

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is asked of the service before it runs

    def collect(self) -> Iterable[Metric]:
        now = self._reception()
        received = CounterMetricFamily("butterfly_metrics_events_received", "Events taken.", labels=["type"])
        for kind, count in now.events_received.items():
            received.add_metric([kind], count)
        yield received
        yield CounterMetricFamily("butterfly_metrics_events_refused", "Events left out.", value=now.events_refused)
        yield CounterMetricFamily(
            "butterfly_metrics_events_lost", "Events their sources dropped.", value=now.events_dropped
        )
        yield GaugeMetricFamily("butterfly_metrics_subscribers", "Readers of the stream.", value=now.subscribers)
        if now.batch_age_s is not None:
            yield GaugeMetricFamily(
                "butterfly_metrics_batch_age_seconds", "Age of the latest batch.", value=now.batch_age_s
            )
