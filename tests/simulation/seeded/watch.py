"""Stands beside the registry and sees every write: whose it was, and whether it might be."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from shared.domain.errors import TaskNotFound
from shared.domain.ids import Attempt, Epoch, TaskId
from shared.domain.task_state import TERMINAL, TaskState
from shared.registry.base import Commit, HeldSessions, TaskRecord, TaskRegistry


class Watch:
    def __init__(self, registry: TaskRegistry, violated: Callable[[str], None]) -> None:
        self.violated = violated
        self._registry = registry
        self._holders: dict[tuple[TaskId, Epoch], str] = {}
        """Which process was given an epoch."""
        self._newest: dict[TaskId, tuple[Attempt, Epoch]] = {}
        self._ended: dict[TaskId, TaskState] = {}
        self._task_ids: list[TaskId] = []

    def expect(self, task_id: TaskId) -> None:
        """This task may come."""
        self._task_ids.append(task_id)

    async def call(self, label: str, name: str, args: tuple[Any, ...], call: Callable[[], Awaitable[Any]]) -> Any:
        """A call of the process `label` to the registry. Any: whatever its methods take and return."""
        before = await self._records() if name in {"commit", "finish"} else {}
        result = await call()
        match name:
            case "open_session":
                self._holders[args[0], result[0]] = label
            case "begin_tail_audit":
                self._holders[args[0], result] = label
            case "hold_sessions":
                await self._adopted(label, result)
            case "commit":
                self._committed(label, before, args[0], await self._records())
            case _:
                pass
        if name == "finish" and result:
            self._wrote(label, args[0], before)
        for task_id, record in (await self._records()).items():
            self._check(task_id, record)
        return result

    async def _records(self) -> dict[TaskId, TaskRecord]:
        found = {}
        for task_id in self._task_ids:
            try:
                found[task_id] = await self._registry.record(task_id)
            except TaskNotFound:
                continue
        return found

    async def _adopted(self, label: str, held: HeldSessions) -> None:
        for task_id in held.adopted:
            record = await self._registry.record(task_id)
            self._holders[task_id, record.epoch] = label

    def _committed(
        self,
        label: str,
        before: dict[TaskId, TaskRecord],
        commits: Iterable[Commit],
        after: dict[TaskId, TaskRecord],
    ) -> None:
        for commit in commits:
            task_id = commit.task_id
            if after[task_id].num_committed > before[task_id].num_committed:
                self._wrote(label, task_id, before, epoch=commit.epoch)

    def _wrote(
        self, label: str, task_id: TaskId, before: dict[TaskId, TaskRecord], *, epoch: Epoch | None = None
    ) -> None:
        record = before[task_id]
        if record.state in TERMINAL:
            return  # the same end once more
        if epoch is not None and epoch != record.epoch:
            self.violated(f"{label} wrote tokens of {task_id} in epoch {epoch} of {record.epoch}")
        holder = self._holders.get((task_id, record.epoch))
        if holder != label:
            self.violated(f"{label} wrote tokens of {task_id}, whose epoch {record.epoch} is {holder}'s")

    def _check(self, task_id: TaskId, record: TaskRecord) -> None:
        attempt, epoch = self._newest.get(task_id, (record.attempt, record.epoch))
        if record.attempt < attempt or record.epoch < epoch:
            self.violated(f"{task_id} fell from attempt {attempt}, epoch {epoch} to {record.attempt}, {record.epoch}")
        self._newest[task_id] = record.attempt, record.epoch
        ended = self._ended.get(task_id)
        if ended is not None and record.state is not ended:
            self.violated(f"{task_id} had ended as {ended}, and is {record.state}")
        if record.state in TERMINAL:
            self._ended[task_id] = record.state
