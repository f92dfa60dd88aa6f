"""The coordinator's own Prometheus series. Every replica tells the same nodes: take the maximum over them."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.domain.session import NodeState


class CoordinatorMetrics(Collector):
    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """`counts`: nodes by state; those without nodes may be left out."""
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        nodes = GaugeMetricFamily("butterfly_nodes", "Nodes, by state.", labels=["state"])
        counts = self._counts()
        for state in NodeState:
            nodes.add_metric([state], counts.get(state, 0))
        yield nodes
