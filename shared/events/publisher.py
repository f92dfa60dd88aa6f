"""Puts events on their way to the metrics service. Publishing never waits and never raises."""

import asyncio
import dataclasses
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from shared.contracts.metrics import (
    MAX_BATCH_EVENTS,
    MAX_NAMES,
    MAX_TEXT,
    EventBatch,
    EventEnvelope,
    EventValue,
)
from shared.contracts.problem import Ack
from shared.domain.errors import ButterflyError
from shared.events.catalogue import Event, subject_of
from shared.resilience.http_client import PeerClient

BATCH_WINDOW_S = 0.2  # an event waits at most this long for others
ANNOUNCE_EVERY_S = 10.0  # a source without events still says that it is there and what it dropped
SEND_TIMEOUT_S = 1.0


class Publisher(ABC):
    @abstractmethod
    def publish(self, event: Event) -> None:
        """Tell what happened. Never waits, never raises; called from the event loop's thread only."""


class FanOutPublisher(Publisher):
    """Gives each event to several publishers, in order."""

    def __init__(self, targets: Sequence[Publisher]) -> None:
        self._targets = tuple(targets)

    def publish(self, event: Event) -> None:
        for target in self._targets:
            target.publish(event)


class HttpPublisher(Publisher):
    """Posts batches to the metrics service: one try each; full or refused means dropped and counted."""

    def __init__(
        self,
        client: PeerClient,
        *,
        source: str,
        boot_id: str,
        address: str = "",
        capacity: int = 10_000,
        wall_s: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """`source`: the service's name or the node's id. `boot_id`: makes event ids unique between runs."""
        self._client = client
        self._source = source
        self._boot_id = boot_id
        self._address = address
        self._capacity = capacity
        self._wall_s = wall_s
        self._sleep = sleep
        self._waiting: deque[tuple[float, Event]] = deque()
        self._wake = asyncio.Event()
        self._sent = 0
        self.published = 0
        self.dropped = 0

    def publish(self, event: Event) -> None:
        if len(self._waiting) >= self._capacity:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append((self._wall_s(), event))
        self.published += 1
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._announce())
            group.create_task(self._send_all())

    async def flush(self) -> None:
        """Send what waits until a batch is refused: also the last act of a service that stops."""
        while self._waiting and await self._send_batch():
            pass

    def next_batch(self) -> EventBatch:
        """Takes out what is sent next; empty when nothing waits."""
        envelopes: list[EventEnvelope] = []
        while self._waiting and len(envelopes) < MAX_BATCH_EVENTS:
            at_s, event = self._waiting.popleft()
            self._sent += 1
            event_id = f"{self._boot_id}-{self._sent}"
            envelopes.append(envelope_of(event, event_id=event_id, at_s=at_s, source=self._source))
        return EventBatch(
            source=self._source, address=self._address, dropped_total=self.dropped, events=tuple(envelopes)
        )

    async def _announce(self) -> None:
        while True:
            self._wake.set()
            await self._sleep(ANNOUNCE_EVERY_S)

    async def _send_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if 0 < len(self._waiting) < MAX_BATCH_EVENTS:
                await self._sleep(BATCH_WINDOW_S)
            if await self._send_batch():
                await self.flush()

    async def _send_batch(self) -> bool:
        batch = self.next_batch()
        try:
            await self._client.post("/events", batch, Ack, timeout_s=SEND_TIMEOUT_S)
        except ButterflyError:  # the reason shows at the peer's breaker and in the count of drops
            self.dropped += len(batch.events)
            return False
        return True


def envelope_of(event: Event, *, event_id: str, at_s: float, source: str) -> EventEnvelope:
    """`event` as it travels. `at_s`: when it happened, Unix seconds."""
    return EventEnvelope(
        id=event_id,
        time=at_s,
        type=type(event).__name__,
        source=source,
        subject=subject_of(event)[:MAX_TEXT],
        data={name: _bounded(value) for name, value in dataclasses.asdict(event).items()},
    )


def _bounded(value: EventValue) -> EventValue:
    """Cut to what the contract allows: a long text must not cost the whole batch."""
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, tuple):
        return value[:MAX_NAMES]
    return value
