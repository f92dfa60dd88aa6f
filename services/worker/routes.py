"""HTTP of the worker: messages from the coordinator, links from the stages before, its state."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.worker.service.incoming_links import IncomingLinks
from services.worker.service.state import StateReader, WorkerState
from shared.contracts.messages import Ack, AnyToWorker, ToWorker
from shared.domain.errors import InvalidCredentials
from shared.domain.message_router import MessageRouter
from shared.runtime.body import until_broken

Commands = MessageRouter[str, AnyToWorker, Ack]
"""Each command with the URL of the coordinator that gives it."""


def build_router(
    *, commands: Commands, commander: Callable[[str], Awaitable[str | None]], links: IncomingLinks, state: StateReader
) -> APIRouter:
    """`commander`: URL of the coordinator whose bearer token this is; None for another."""
    router = APIRouter()

    @router.post("/messages")
    async def take_message(body: ToWorker, request: Request) -> Ack:
        coordinator = await commander(_bearer(request))
        if coordinator is None:
            raise InvalidCredentials("only a coordinator of this worker's cluster commands it")
        return await commands.route(coordinator, body)

    @router.get("/state")
    async def read_state() -> WorkerState:
        return state.read()

    async def take_link(request: Request) -> Response:
        await links.receive(_bearer(request), until_broken(request))
        return Response(status_code=204)

    router.add_route("/links", take_link, methods=["POST"])
    return router


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""
