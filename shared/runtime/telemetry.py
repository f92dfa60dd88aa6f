"""What every service needs to call others and to tell what happens: peers, events and own series, joined once."""

import random
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from shared.events.local_metrics import LocalMetrics, PublisherMetrics
from shared.events.peer_hooks import peer_hooks
from shared.events.publisher import FanOutPublisher, HttpPublisher, Publisher
from shared.resilience.breaker import BreakerPolicy
from shared.resilience.hooks import PeerHooks
from shared.resilience.http_client import PeerClient, PeerClients
from shared.resilience.peer_group import PeerGroup
from shared.resilience.pool import Connect
from shared.resilience.retry import RetryPolicy
from shared.runtime.clock import Clock
from shared.runtime.config import Config
from shared.runtime.tasks import BackgroundTasks

CONTROL_BREAKER = BreakerPolicy(open_s=3.0)
"""For services of this cluster: their supervisor starts them again within seconds, and clients wait meanwhile."""


class Telemetry:
    """Made first by an `app.py`: `events` and `peers` go to the service, `registry` to `make_app`."""

    def __init__(
        self,
        *,
        source: str,
        address: str,
        config: Config,
        clock: Clock,
        connect: Connect | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`source`: name of the service, or id of the node. `address`: host:port where it serves /metrics. `connect`
        None: peers are called over sockets. `rng` (None: seeded by the system): for jitter."""
        security = config.security
        self._rng = rng or random.Random()  # noqa: S311  jitter, not secrets
        self.registry = CollectorRegistry()
        self._tasks = BackgroundTasks(clock)
        # The publisher's own calls publish nothing: events about events would never end.
        self._metrics_peer = PeerClient(
            name="metrics",
            base_url=config.services.metrics_url,
            service_token=security.service_token.get_secret_value(),
            hooks=PeerHooks(),
            now=clock.now_s,
            breaker=CONTROL_BREAKER,
            rng=self._rng,
            connect=connect,
        )
        self._publisher = HttpPublisher(
            self._metrics_peer,
            source=source,
            boot_id=secrets.token_hex(8),
            address=address,
            capacity=config.metrics.channel_capacity,
            wall_s=clock.wall_s,
            sleep=clock.sleep,
        )
        self.events: Publisher = FanOutPublisher((LocalMetrics(self.registry), self._publisher))
        self.registry.register(PublisherMetrics(self._publisher))
        self.peers = PeerClients(
            hooks=peer_hooks(self.events, source=source, now=clock.now_s),
            now=clock.now_s,
            service_token=security.service_token.get_secret_value(),
            trusted_urls=[url for _, urls in config.services for url in ([urls] if isinstance(urls, str) else urls)],
            trusted_breaker=CONTROL_BREAKER,
            max_connections=config.network.max_connections,
            retry=RetryPolicy(attempts=config.network.retry_attempts, base_s=config.network.retry_backoff_ms / 1000),
            rng=self._rng,
            connect=connect,
        )

    def replicas(self, name: str, urls: Sequence[str]) -> PeerGroup:
        """The clients of a service. One of several is asked first by chance, so that callers spread over them."""
        if len(urls) == 1:
            return PeerGroup([self.peers.get(name, urls[0])])
        once = RetryPolicy(attempts=1)
        clients = [self.peers.get(f"{name}-{place}", url, retry=once) for place, url in enumerate(urls)]
        return PeerGroup(clients, first=self._rng.randrange(len(clients)))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Around the service's own lifespan: sends events meanwhile, closes the peers' connections at the end."""
        self._tasks.loop("publish_events", self._publisher.run)
        try:
            yield
        finally:
            await self._tasks.stop(grace_s=1.0)
            await self._publisher.flush()
            await self.peers.aclose()
            await self._metrics_peer.aclose()
