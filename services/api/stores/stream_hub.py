"""One reader of task streams for the whole process, however many clients wait.

A single blocking read covers every open stream; it is begun anew when another stream is opened. A reader that lags
behind is left out until it has caught up, so that nothing grows without bound and nothing is lost.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from services.api.domain.stream_entries import entry_order
from services.api.ports import EntryStream
from shared.domain.errors import ButterflyError, RegistryUnavailable
from shared.domain.ids import TaskId
from shared.registry.base import StreamEntry, TaskRegistry

MAX_PENDING: Final = 256  # entries that a slow reader may leave lying
BLOCK_S: Final = 5.0


class Subscription(EntryStream):
    def __init__(self, *, patient: bool, caught_up: asyncio.Event) -> None:
        """`caught_up` is set when room was made in a full queue."""
        self.patient = patient
        self.position = "0"
        """The last entry taken in."""
        self._pending: deque[StreamEntry] = deque()
        self._arrived = asyncio.Event()
        self._caught_up = caught_up
        self._failure: ButterflyError | None = None

    @property
    def is_full(self) -> bool:
        return len(self._pending) >= MAX_PENDING

    def take_in(self, entries: Iterable[StreamEntry]) -> None:
        """New entries; those known already are left out, and those there is no room for are read again later."""
        for entry in entries:
            if self.is_full:
                break
            if entry_order(entry.entry_id) > entry_order(self.position):
                self.position = entry.entry_id
                self._pending.append(entry)
                self._arrived.set()

    def fail(self, error: ButterflyError) -> None:
        self._failure = error
        self._arrived.set()

    async def next(self) -> StreamEntry:
        while not self._pending:
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            await self._arrived.wait()
        if self.is_full:
            self._caught_up.set()
        return self._pending.popleft()


class StreamHub:
    def __init__(self, registry: TaskRegistry) -> None:
        self._registry = registry
        self._open: dict[TaskId, set[Subscription]] = {}
        self._changed = asyncio.Event()

    @contextmanager
    def follow(self, task_id: TaskId, *, patient: bool) -> Iterator[EntryStream]:
        subscription = Subscription(patient=patient, caught_up=self._changed)
        self._open.setdefault(task_id, set()).add(subscription)
        self._changed.set()
        try:
            yield subscription
        finally:
            self._open[task_id].discard(subscription)
            if not self._open[task_id]:
                del self._open[task_id]

    @property
    def num_followed(self) -> int:
        """Tasks whose streams are being read."""
        return len(self._open)

    def fail(self, error: ButterflyError, *, patient: bool) -> None:
        """End the patient or the other streams with `error`."""
        for subscription in (each for subscriptions in self._open.values() for each in subscriptions):
            if subscription.patient is patient:
                subscription.fail(error)

    async def round(self) -> None:
        """One read of all open streams; waits for the first stream to be opened. To be called again and again.

        Raises `RegistryUnavailable`: the streams stay open, and the next read goes on where they are.
        """
        self._changed.clear()
        after = self._positions()
        if not after:
            await self._changed.wait()
            return
        found: Mapping[TaskId, tuple[StreamEntry, ...]] = {}
        away: Exception | None = None
        try:
            found = await self._read_until_changed(after)
        except* RegistryUnavailable as errors:
            (away,) = errors.exceptions
        if away is not None:  # out of the group it came in, so that the loop knows it
            raise away
        for task_id, entries in found.items():
            for subscription in self._open.get(task_id, ()):
                subscription.take_in(entries)

    def _positions(self) -> dict[TaskId, str]:
        """Where to read on, per task: after the entry that the last of its readers has."""
        waiting = {
            task_id: [each.position for each in subscriptions if not each.is_full]
            for task_id, subscriptions in self._open.items()
        }
        return {task_id: min(positions, key=entry_order) for task_id, positions in waiting.items() if positions}

    async def _read_until_changed(self, after: Mapping[TaskId, str]) -> Mapping[TaskId, tuple[StreamEntry, ...]]:
        """New entries; nothing when the set of streams changed first. What a given-up read had found is read again."""
        async with asyncio.TaskGroup() as group:
            read = group.create_task(self._registry.read_streams(after, block_s=BLOCK_S))
            changed = group.create_task(self._changed.wait())
            await asyncio.wait({read, changed}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            read.cancel()
        return {} if read.cancelled() else read.result()
