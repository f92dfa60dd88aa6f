"""The task API."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.api.json_body import read_json_object
from services.api.routes.callers import caller_of
from services.api.schemas import parse_body
from services.api.service.tasks import TaskEvent, TasksInterface
from services.api.sse import EventStream, data_event, retry_line
from services.api.task_schemas import TaskBody, parse_list_query, parse_wait_s
from shared.runtime.clock import Clock

POLL_AGAIN = {"Retry-After": "1"}  # a hint for those who wait for a task
RECONNECT_MS = 2_000
STREAM_PATHS = ("/v1/tasks/{task_id}/events",)


def build_tasks_router(tasks: TasksInterface, clock: Clock) -> APIRouter:
    router = APIRouter()

    async def submit(request: Request) -> Response:
        body = await read_json_object(request)
        wanted = parse_body(TaskBody, body).to_wanted()
        view = await tasks.submit(wanted, caller_of(request, route=request.url.path, body=body))
        headers = {"Location": f"/v1/tasks/{view.resource['task_id']}"}
        if view.has_ended:
            return JSONResponse(view.resource, headers=headers)
        return JSONResponse(view.resource, 202, headers=headers | POLL_AGAIN)

    async def page(request: Request) -> Response:
        return JSONResponse(await tasks.page(parse_list_query(request.query_params), caller_of(request)))

    async def view(request: Request, task_id: str) -> Response:
        wait_s = parse_wait_s(request.query_params)
        return JSONResponse((await tasks.view(task_id, caller_of(request), wait_s=wait_s)).resource)

    async def result(request: Request, task_id: str) -> Response:
        found = await tasks.result(task_id, caller_of(request))
        if found is None:
            return JSONResponse({"task_id": task_id, "object": "task.pending"}, 202, headers=POLL_AGAIN)
        return JSONResponse(found)

    async def receipt(request: Request, task_id: str) -> Response:
        return JSONResponse(await tasks.receipt(task_id, caller_of(request)))

    async def cancel(request: Request, task_id: str) -> Response:
        cancelled = await tasks.cancel(task_id, caller_of(request))
        return JSONResponse(cancelled.resource, 202 if cancelled.accepted else 200)

    async def events(request: Request, task_id: str) -> Response:
        after = request.headers.get("last-event-id") or request.query_params.get("after", "")
        found = await tasks.events(task_id, caller_of(request), after=after)
        return EventStream(_events(found), clock=clock)

    router.add_api_route("/v1/tasks", submit, methods=["POST"], response_model=None)
    router.add_api_route("/v1/tasks", page, methods=["GET", "HEAD"], response_model=None)
    router.add_api_route("/v1/tasks/{task_id}", view, methods=["GET", "HEAD"], response_model=None)
    router.add_api_route("/v1/tasks/{task_id}/result", result, methods=["GET", "HEAD"], response_model=None)
    router.add_api_route("/v1/tasks/{task_id}/receipt", receipt, methods=["GET", "HEAD"], response_model=None)
    router.add_api_route("/v1/tasks/{task_id}/cancel", cancel, methods=["POST"], response_model=None)
    router.add_api_route("/v1/tasks/{task_id}/events", events, methods=["GET"], response_model=None)
    return router


async def _events(found: AsyncGenerator[TaskEvent]) -> AsyncGenerator[bytes]:
    yield retry_line(RECONNECT_MS)
    async with aclosing(found) as events:
        async for event in events:
            yield data_event(event.body, name=event.name, event_id=event.entry_id)
