"""HTTP of the scheduler: parse, call, answer."""

from fastapi import APIRouter

from services.scheduler.service.scheduling import SchedulingInterface
from shared.contracts.base import Empty
from shared.contracts.scheduler import CancelReply, QueueState, RenewAttachments, SubmitTask, Submitted
from shared.domain.ids import TaskId


def build_router(service: SchedulingInterface) -> APIRouter:
    router = APIRouter()

    @router.post("/tasks", status_code=202)
    async def submit(body: SubmitTask) -> Submitted:
        return await service.submit_task(body)

    @router.post("/tasks/{task_id}/cancel")
    async def cancel(task_id: str) -> CancelReply:
        return await service.cancel_task(TaskId(task_id))

    @router.post("/attachments")
    async def renew_attachments(body: RenewAttachments) -> Empty:
        await service.renew_attachments(body.task_ids)
        return Empty()

    @router.get("/state")
    async def state() -> QueueState:
        return await service.queue_state()

    return router
