"""Events to the metrics service, whose address a worker learns when it joins."""

from collections.abc import Callable

from shared.events.catalogue import Event
from shared.events.publisher import HttpPublisher, Publisher
from shared.resilience.hooks import PeerHooks
from shared.resilience.http_client import PeerClient
from shared.resilience.pool import Connect
from shared.runtime.clock import Clock
from shared.runtime.tasks import BackgroundTasks


class MetricsUplink(Publisher):
    """Events before the first registration are dropped: nothing has happened yet that anybody asks for."""

    def __init__(
        self,
        make_publisher: Callable[[PeerClient], HttpPublisher],
        *,
        tasks: BackgroundTasks,
        clock: Clock,
        connect: Connect | None = None,
    ) -> None:
        self._make_publisher = make_publisher
        self._tasks = tasks
        self._clock = clock
        self._connect = connect
        self._client: PeerClient | None = None
        self._publisher: HttpPublisher | None = None

    def connect(self, url: str) -> None:
        """Send to `url` from now on. Called at every registration; the address stays the same in one run."""
        if self._client is not None:
            return
        # The publisher's own calls publish nothing: events about events would never end.
        self._client = PeerClient(
            name="metrics", base_url=url, hooks=PeerHooks(), now=self._clock.now_s, connect=self._connect
        )
        self._publisher = self._make_publisher(self._client)
        self._tasks.loop("publish_events", self._publisher.run)

    def publish(self, event: Event) -> None:
        if self._publisher is not None:
            self._publisher.publish(event)

    async def aclose(self) -> None:
        if self._publisher is not None and self._client is not None:
            await self._publisher.flush()
            await self._client.aclose()
