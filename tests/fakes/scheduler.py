"""A scheduler in this process, over a registry of its own, and the hand that plays all who come after it."""

from collections.abc import Sequence

from services.api.ports import Scheduler
from shared.contracts.scheduler import CancelReply, QueueState, SubmitTask, Submitted
from shared.domain.errors import ButterflyError
from shared.domain.ids import Attempt, TaskId
from shared.domain.task import FinishReason, TokenRecord
from shared.domain.task_state import TaskEvent
from shared.registry.base import Commit, Finish, TaskRegistry


class FakeScheduler(Scheduler):
    def __init__(self, registry: TaskRegistry, *, max_queue_size: int = 1_000) -> None:
        self._registry = registry
        self._max_queue_size = max_queue_size
        self.refuses_with: ButterflyError | None = None
        self.submissions: list[SubmitTask] = []
        self.cancelled: list[TaskId] = []
        self.renewed: list[TaskId] = []

    async def submit(self, submission: SubmitTask) -> Submitted:
        if self.refuses_with is not None:
            raise self.refuses_with
        accepted = await self._registry.submit(
            submission.task,
            idempotency_key=submission.idempotency_key,
            payload_hash=submission.payload_hash,
            attached=submission.attached,
            max_queue_size=self._max_queue_size,
            max_queued_per_owner=100,
        )
        self.submissions.append(submission)
        return Submitted(task_id=accepted.task_id, state=accepted.state, created=accepted.created)

    async def cancel(self, task_id: TaskId) -> CancelReply:
        state, accepted = await self._registry.cancel(task_id)
        self.cancelled.append(task_id)
        return CancelReply(task_id=task_id, state=state, accepted=accepted)

    async def renew(self, task_ids: Sequence[TaskId]) -> None:
        self.renewed.extend(task_ids)

    async def queue(self) -> QueueState:
        view = await self._registry.queue()
        return QueueState(
            depth=view.depth,
            oldest_age_s=view.oldest_age_s,
            by_priority=dict(view.by_priority),
            running=view.running,
        )


class Conductor:
    """Moves tasks as scheduler and coordinator would: from the queue to their end."""

    def __init__(self, registry: TaskRegistry) -> None:
        self._registry = registry
        self._attempts: dict[TaskId, Attempt] = {}

    async def start(self, task_id: TaskId) -> None:
        """Queued -> Computing."""
        record = await self._registry.record(task_id)
        claims = await self._registry.claim(record.task.group, 32, owner="test", lease_s=60, plan_id="plan")
        self._attempts |= {claim.task_id: claim.attempt for claim in claims}
        attempt = self._attempts[task_id]
        epoch, _, _ = await self._registry.open_session(
            task_id, attempt=attempt, plan_id="plan", coordinator="coordinator-1", lease_s=3.0
        )
        await self._registry.advance(task_id, TaskEvent.COORDINATION_COMPLETE, epoch=epoch)

    async def commit(self, task_id: TaskId, records: Sequence[TokenRecord]) -> None:
        record = await self._registry.record(task_id)
        commit = Commit(task_id, record.epoch, record.num_committed, tuple(records))
        assert await self._registry.commit([commit]) == (record.num_committed + len(records),)

    async def finish(self, task_id: TaskId, reason: FinishReason = FinishReason.STOP) -> None:
        record = await self._registry.record(task_id)
        finish = Finish(reason, record.num_committed)
        assert await self._registry.finish(task_id, epoch=record.epoch, finish=finish, last=None)

    async def fail(self, task_id: TaskId, code: str, message: str) -> None:
        record = await self._registry.record(task_id)
        await self._registry.advance(task_id, TaskEvent.FAIL, epoch=record.epoch, error_code=code, error=message)
