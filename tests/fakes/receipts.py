"""Receipts in memory: passes the same contract suite as the Redis store."""

import time
from collections.abc import Callable

from shared.domain.errors import ResultExpired, StaleEpoch
from shared.domain.ids import Epoch, TaskId
from shared.domain.tail_audit import TailAudit
from shared.domain.window_entry import WindowEntry
from shared.registry.base import TaskRegistry
from shared.registry.receipts import ReceiptStore


class MemoryReceiptStore(ReceiptStore):
    """`registry` knows the tasks; `now` gives Unix seconds, by the same clock."""

    def __init__(self, registry: TaskRegistry, now: Callable[[], float] = time.time) -> None:
        self._registry = registry
        self._now = now
        self._entries: dict[TaskId, dict[tuple[int, Epoch], WindowEntry]] = {}
        self._tails: dict[TaskId, TailAudit] = {}

    async def append(self, task_id: TaskId, entry: WindowEntry) -> None:
        record = await self._registry.record(task_id)
        if record.epoch != entry.epoch:
            raise StaleEpoch(f"task {task_id} is at epoch {record.epoch}")
        self._entries.setdefault(task_id, {}).setdefault((entry.window, entry.epoch), entry)

    async def entries(self, task_id: TaskId) -> tuple[WindowEntry, ...]:
        record = await self._registry.record(task_id)
        if record.expires_s is not None and self._now() >= record.expires_s:
            raise ResultExpired(f"the receipts of task {task_id} are gone")
        return tuple(entry for _, entry in sorted(self._entries.get(task_id, {}).items()))

    async def keep_tail_audit(self, task_id: TaskId, audit: TailAudit) -> None:
        record = await self._registry.record(task_id)
        if record.epoch != audit.epoch:
            raise StaleEpoch(f"task {task_id} is at epoch {record.epoch}")
        self._tails.setdefault(task_id, audit)

    async def tail_audit(self, task_id: TaskId) -> TailAudit | None:
        return self._tails.get(task_id)
