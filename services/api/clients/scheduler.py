"""Calls to the scheduler."""

from collections.abc import Sequence

from services.api.ports import Scheduler
from shared.contracts.base import Empty
from shared.contracts.scheduler import CancelReply, QueueState, RenewAttachments, SubmitTask, Submitted
from shared.domain.ids import TaskId
from shared.resilience.peer_group import PeerGroup

SUBMIT_TIMEOUT_S = 5.0  # an fsync and, with `require_capacity`, a plan


class HttpScheduler(Scheduler):
    def __init__(self, peer: PeerGroup) -> None:
        self._peer = peer

    async def submit(self, submission: SubmitTask) -> Submitted:
        # The task's id is ours: a second arrival finds the first.
        return await self._peer.post("/tasks", submission, Submitted, idempotent=True, timeout_s=SUBMIT_TIMEOUT_S)

    async def cancel(self, task_id: TaskId) -> CancelReply:
        return await self._peer.post(f"/tasks/{task_id}/cancel", None, CancelReply, idempotent=True)

    async def renew(self, task_ids: Sequence[TaskId]) -> None:
        await self._peer.post("/attachments", RenewAttachments(task_ids=tuple(task_ids)), Empty, idempotent=True)

    async def queue(self) -> QueueState:
        return await self._peer.get("/state", QueueState)
