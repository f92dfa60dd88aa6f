"""Where the receipts of committed windows are kept: what makes an answer checkable by anyone, later."""

from abc import ABC, abstractmethod

from shared.domain.ids import TaskId
from shared.domain.tail_audit import TailAudit
from shared.domain.window_entry import WindowEntry


class ReceiptStore(ABC):
    """Methods raise `RegistryUnavailable` when the store is away, `TaskNotFound` for unknown ids; calls may overlap."""

    @abstractmethod
    async def append(self, task_id: TaskId, entry: WindowEntry) -> None:
        """Keep a window's entry, as long as the task's result. Durable when it returns; to be called before the commit.

        An entry for the same epoch and window that is there already stays as it is. Also for a task that has ended.
        Raises `StaleEpoch` unless the task is at the entry's epoch.
        """

    @abstractmethod
    async def entries(self, task_id: TaskId) -> tuple[WindowEntry, ...]:
        """All entries by window, then epoch; of several for a window the last may count (`committed_entries`).

        Raises `ResultExpired` after the time to live.
        """

    @abstractmethod
    async def keep_tail_audit(self, task_id: TaskId, audit: TailAudit) -> None:
        """Keep what the tail audit signed, beside the entries. The first one stays.

        Raises `StaleEpoch` unless the task is at the audit's epoch.
        """

    @abstractmethod
    async def tail_audit(self, task_id: TaskId) -> TailAudit | None:
        """What `keep_tail_audit` kept, if anything and if still."""
