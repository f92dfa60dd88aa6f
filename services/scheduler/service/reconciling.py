"""The reconciler: whatever was lost on the way is found again, whatever is over is ended."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

from services.scheduler.ports import Coordinator
from services.scheduler.service.following import LEASE_S, Follower
from services.scheduler.service.scheduling import latency_ms, stop_session
from shared.domain.errors import TaskNotFound
from shared.domain.ids import TaskId
from shared.domain.task import TaskGroup
from shared.events.catalogue import TaskCancelled, TaskFailed
from shared.events.publisher import Publisher
from shared.registry.base import Reconciled, TaskRegistry
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

EVERY_S = 2.0  # less than a lease: one taken since the last look cannot lapse before the next
AT_ONCE_S = 0.05
LIMIT = 100
MAX_ATTEMPTS = 5  # schedulers lost while starting the task


class Reconciler:
    """Runs in every replica, harmless in parallel."""

    def __init__(
        self,
        *,
        registry: TaskRegistry,
        coordinator: Coordinator,
        follower: Follower,
        events: Publisher,
        clock: Clock,
        waiting: Callable[[], Mapping[TaskGroup, str]],
    ) -> None:
        """`waiting`: why the queued tasks of a group are not dispatched."""
        self._registry = registry
        self._coordinator = coordinator
        self._follower = follower
        self._events = events
        self._clock = clock
        self._waiting = waiting
        self.mended: Counter[str] = Counter()
        """Tasks since the start, by what was done (the fields of `Reconciled`)."""

    async def run_once(self) -> None:
        """To be called in a loop."""
        next_lapse_s = await self.reconcile()
        await self._clock.sleep(EVERY_S if next_lapse_s is None else min(EVERY_S, next_lapse_s + AT_ONCE_S))

    async def reconcile(self) -> float | None:
        """Mend what is to be mended; returns how long until the first lease lapses, if nobody renews it."""
        found = await self._registry.reconcile(
            limit=LIMIT,
            max_attempts=MAX_ATTEMPTS,
            owner=self._follower.owner,
            lease_s=LEASE_S,
            waiting=self._waiting(),
        )
        if found == Reconciled():
            return found.next_lapse_s
        counts = {done: len(task_ids) for done, task_ids in asdict(found).items() if done != "next_lapse_s"}
        self.mended.update(counts)
        log.info("reconciled", extra=counts)
        self._follower.follow(found.adopted)
        await self._tell(found)
        await self._stop_sessions((*found.expired, *found.detached))
        return found.next_lapse_s

    async def _tell(self, found: Reconciled) -> None:
        for task_id in found.expired:
            self._events.publish(TaskFailed(task_id, "deadline_exceeded", await self._latency_ms(task_id)))
        for task_id in found.exhausted:
            self._events.publish(TaskFailed(task_id, "attempts_exhausted", await self._latency_ms(task_id)))
        for task_id in found.detached:
            self._events.publish(TaskCancelled(task_id, await self._latency_ms(task_id)))

    async def _latency_ms(self, task_id: TaskId) -> float | None:
        try:
            return latency_ms(await self._registry.record(task_id))
        except TaskNotFound:
            return None

    async def _stop_sessions(self, task_ids: Iterable[TaskId]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for task_id in task_ids:
                self._follower.forget(task_id)
                tasks.create_task(stop_session(self._coordinator, task_id))
