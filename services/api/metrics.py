"""The gateway's own series: what it sees of its open requests. Shaped like vLLM's, so that known recipes carry over."""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

FIRST_TOKEN_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 40, 80)
INTER_TOKEN_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2, 5)
LABELS: Final = ("model", "verified")


class GatewayMetrics:
    def __init__(self, registry: CollectorRegistry, *, now: Callable[[], float]) -> None:
        """`now`: monotonic seconds."""
        self.now = now

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, LABELS, registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, LABELS, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, LABELS, buckets=buckets, registry=registry)

        self.running = gauge("butterfly_num_requests_running", "Open answers that have had a token.")
        self.waiting = gauge("butterfly_num_requests_waiting", "Open answers without a token yet.")
        self.first_token = histogram(
            "butterfly_time_to_first_token_seconds", "Acceptance to first token.", FIRST_TOKEN_BUCKETS_S
        )
        self.inter_token = histogram(
            "butterfly_inter_token_latency_seconds", "Time per token after the first.", INTER_TOKEN_BUCKETS_S
        )
        self.prompt_tokens = counter("butterfly_prompt_tokens_total", "Tokens of accepted prompts.")
        self.generation_tokens = counter("butterfly_generation_tokens_total", "Tokens given to clients.")

    def opened(self, model_id: str, *, verified: bool, prompt_tokens: int) -> "AnswerMeter":
        """An answer was opened. `model_id`: one of the catalogue, never just a client's word."""
        return AnswerMeter(self, (model_id, str(verified).lower()), prompt_tokens)


class AnswerMeter:
    """Measures one open answer; `close` is to be called exactly once."""

    def __init__(self, metrics: GatewayMetrics, labels: tuple[str, str], prompt_tokens: int) -> None:
        self._metrics = metrics
        self._labels = labels
        self._last_s = metrics.now()
        self._place = metrics.waiting.labels(*labels)
        self._place.inc()
        metrics.prompt_tokens.labels(*labels).inc(prompt_tokens)

    def tokens(self, count: int) -> None:
        """`count` tokens came at once."""
        if count == 0:
            return
        now_s, metrics = self._metrics.now(), self._metrics
        waited_s, self._last_s = now_s - self._last_s, now_s
        metrics.generation_tokens.labels(*self._labels).inc(count)
        running = metrics.running.labels(*self._labels)
        if self._place is not running:
            self._place.dec()
            self._place = running
            self._place.inc()
            metrics.first_token.labels(*self._labels).observe(waited_s)
            return
        inter_token = metrics.inter_token.labels(*self._labels)
        for _ in range(count):
            inter_token.observe(waited_s / count)

    def close(self) -> None:
        self._place.dec()
