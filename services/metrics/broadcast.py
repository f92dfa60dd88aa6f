"""Gives events to subscribers; one that reads too slowly loses the oldest and is told how many."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shared.contracts.metrics import EventEnvelope
from shared.domain.errors import Unavailable

MAX_SUBSCRIBERS = 64
PLACES = 1_000


@dataclass(frozen=True, slots=True)
class Gap:
    """`missed` events were lost before the next one."""

    missed: int


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing happened for a while."""


@dataclass(frozen=True, slots=True)
class Bye:
    """The service stops; nothing comes after this."""


Item = EventEnvelope | Gap | Silence | Bye
Wanted = Callable[[EventEnvelope], bool]


class Subscription:
    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._waiting: deque[EventEnvelope] = deque()
        self._missed = 0
        self._is_over = False
        self._wake = asyncio.Event()

    def put(self, envelope: EventEnvelope) -> None:
        if not self._wanted(envelope):
            return
        if len(self._waiting) >= PLACES:
            self._waiting.popleft()
            self._missed += 1
        self._waiting.append(envelope)
        self._wake.set()

    def end(self) -> None:
        self._is_over = True
        self._wake.set()

    async def items(self, *, silence_s: float) -> AsyncIterator[Item]:
        """What comes, in order, until `Bye`. A `Silence` stands for `silence_s` seconds without anything."""
        while not self._is_over:
            if self._missed:
                missed, self._missed = self._missed, 0
                yield Gap(missed)
            while self._waiting and not self._missed:
                yield self._waiting.popleft()
            if self._missed or self._is_over:
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(silence_s):
                    await self._wake.wait()
            except TimeoutError:
                yield Silence()
        yield Bye()


class Broadcast:
    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    @property
    def num_subscribers(self) -> int:
        return len(self._subscriptions)

    def send(self, envelope: EventEnvelope) -> None:
        for subscription in self._subscriptions:
            subscription.put(envelope)

    @contextmanager
    def subscribed(self, wanted: Wanted) -> Iterator[Subscription]:
        """Raises `Unavailable` when all places are taken."""
        if len(self._subscriptions) >= MAX_SUBSCRIBERS:
            raise Unavailable(f"all {MAX_SUBSCRIBERS} places for subscribers are taken", retry_after_s=10)
        subscription = Subscription(wanted)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def end(self) -> None:
        """Say `Bye` to everybody."""
        for subscription in self._subscriptions:
            subscription.end()
