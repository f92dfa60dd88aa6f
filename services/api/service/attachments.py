"""Tells the scheduler which tasks still have a client: an api that dies takes nobody's slots hostage."""

import logging

from services.api.ports import Scheduler
from shared.domain.errors import ButterflyError
from shared.domain.ids import TaskId
from shared.runtime.clock import Clock

RENEW_EVERY_S = 5.0  # the reconciler cancels an attached task 15 s after the last renewal
MAX_PER_CALL = 10_000

log = logging.getLogger(__name__)


class Attachments:
    def __init__(self, scheduler: Scheduler, clock: Clock) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._open: dict[TaskId, int] = {}

    def add(self, task_id: TaskId) -> None:
        """One more client waits for this task (several, when an idempotency key led to it again)."""
        self._open[task_id] = self._open.get(task_id, 0) + 1

    def remove(self, task_id: TaskId) -> None:
        self._open[task_id] -= 1
        if not self._open[task_id]:
            del self._open[task_id]

    async def round(self) -> None:
        """Wait one period, then renew all in one call. To be called again and again."""
        await self._clock.sleep(RENEW_EVERY_S)
        task_ids = tuple(self._open)
        for first in range(0, len(task_ids), MAX_PER_CALL):
            try:
                await self._scheduler.renew(task_ids[first : first + MAX_PER_CALL])
            except ButterflyError as error:
                log.warning("attachments_not_renewed", extra={"count": len(task_ids), "error": error.message})
