"""The routes that OpenAI clients know."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.api.domain.openai_bodies import AnswerHead
from services.api.json_body import read_json_object
from services.api.routes.callers import caller_of
from services.api.schemas import ChatBody, CompletionBody, parse_body
from services.api.service.answer import Answer
from services.api.service.cluster import ClusterInterface
from services.api.service.gateway import GatewayInterface
from services.api.sse import DONE, EventStream, data_event, while_connected
from shared.runtime.clock import Clock

TASK_ID_HEADER = "x-butterfly-task-id"
VERIFIED_HEADER = "x-butterfly-verified"
RECEIPT_HEADER = "x-butterfly-receipt"
STREAM_PATHS = ("/v1/chat/completions", "/v1/completions")


def build_openai_router(gateway: GatewayInterface, cluster: ClusterInterface, clock: Clock) -> APIRouter:
    router = APIRouter()

    async def chat(request: Request) -> Response:
        return await answer(request, ChatBody)

    async def completion(request: Request) -> Response:
        return await answer(request, CompletionBody)

    async def answer(request: Request, schema: type[ChatBody] | type[CompletionBody]) -> Response:
        body = await read_json_object(request)
        wanted = parse_body(schema, body).to_wanted()
        opened = await gateway.open(wanted, caller_of(request, route=request.url.path, body=body))
        headers = _headers(opened.head)
        if wanted.stream:
            events = _events(opened, include_usage=wanted.include_usage)
            return EventStream(events, clock=clock, on_close=opened.close, headers=headers)
        try:
            return JSONResponse(await while_connected(request.receive, opened.whole()), headers=headers)
        finally:
            opened.close()

    async def models() -> Response:
        return JSONResponse(await cluster.models())

    async def model(model_id: str) -> Response:
        return JSONResponse(await cluster.model(model_id))

    router.add_api_route("/v1/chat/completions", chat, methods=["POST"], response_model=None)
    router.add_api_route("/v1/completions", completion, methods=["POST"], response_model=None)
    router.add_api_route("/v1/models", models, methods=["GET", "HEAD"], response_model=None)
    router.add_api_route("/v1/models/{model_id:path}", model, methods=["GET", "HEAD"], response_model=None)
    return router


def _headers(head: AnswerHead) -> dict[str, str]:
    """Sent before the first token of a stream: no token of a verified answer goes out before it is committed."""
    headers = {TASK_ID_HEADER: head.task_id, VERIFIED_HEADER: head.verification.value}
    return headers if head.receipt_url is None else headers | {RECEIPT_HEADER: head.receipt_url}


async def _events(answer: Answer, *, include_usage: bool) -> AsyncGenerator[bytes]:
    async with aclosing(answer.chunks(include_usage=include_usage)) as chunks:
        async for chunk in chunks:
            yield data_event(chunk)
    yield DONE
