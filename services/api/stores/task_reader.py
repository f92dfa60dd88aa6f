"""The reading side of the task registry."""

from contextlib import AbstractContextManager

from services.api.ports import EntryStream, TaskReader
from services.api.stores.stream_hub import StreamHub
from shared.domain.ids import ModelId, TaskId
from shared.domain.tail_audit import TailAudit
from shared.domain.task import TokenRecord
from shared.domain.task_state import TaskState
from shared.domain.window_entry import WindowEntry
from shared.registry.base import TaskPage, TaskRecord, TaskRegistry
from shared.registry.receipts import ReceiptStore


class RegistryTaskReader(TaskReader):
    def __init__(self, registry: TaskRegistry, receipts: ReceiptStore, hub: StreamHub) -> None:
        self._registry = registry
        self._receipts = receipts
        self._hub = hub

    async def record(self, task_id: TaskId) -> TaskRecord:
        return await self._registry.record(task_id)

    async def tokens(self, task_id: TaskId) -> tuple[TokenRecord, ...]:
        return await self._registry.tokens(task_id)

    async def receipts(self, task_id: TaskId) -> tuple[WindowEntry, ...]:
        return await self._receipts.entries(task_id)

    async def tail_audit(self, task_id: TaskId) -> TailAudit | None:
        return await self._receipts.tail_audit(task_id)

    async def page(
        self, *, owner: str, states: frozenset[TaskState], model_id: ModelId | None, limit: int, cursor: str | None
    ) -> TaskPage:
        return await self._registry.list_tasks(
            owner=owner, states=states or frozenset(TaskState), model_id=model_id, limit=limit, cursor=cursor
        )

    def follow(self, task_id: TaskId, *, patient: bool) -> AbstractContextManager[EntryStream]:
        return self._hub.follow(task_id, patient=patient)
