"""HTTP of the coordinator: parse, call, answer.

Workers reach `POST /nodes` (join token), `POST /messages` (node token) and `POST /links` (link token); all else needs
the service token.
"""

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from services.coordinator.service.interfaces import (
    EvidenceInterface,
    MeasuringInterface,
    MembershipInterface,
    MessagesInterface,
    PlacementsInterface,
    RelaysInterface,
    SessionsInterface,
)
from shared.contracts.base import Empty
from shared.contracts.coordinator import (
    CoordinatorState,
    EvidenceList,
    NodeList,
    OpenSession,
    Place,
    PublicKeys,
    QuarantineNode,
    Registered,
    RegisterNode,
)
from shared.contracts.messages import Ack, to_coordinator
from shared.domain.errors import WrongServiceToken
from shared.domain.ids import NodeId, TaskId
from shared.runtime.body import until_broken

PUBLIC_PATHS = ("/nodes", "/messages", "/links")
BEARER = "bearer "
BY_OPERATOR = QuarantineNode()


def bearer_of(request: Request) -> str:
    """The bearer token, or "" when there is none."""
    given = request.headers.get("Authorization", "")
    return given[len(BEARER) :].strip() if given.lower().startswith(BEARER) else ""


def require_trust(request: Request) -> None:
    """For routes below a public path that are not public themselves."""
    if not request.state.is_trusted:
        raise WrongServiceToken("this path needs the service token")


def build_nodes_router(members: MembershipInterface, measuring: MeasuringInterface) -> APIRouter:
    router = APIRouter()

    @router.post("/nodes")
    async def register(body: RegisterNode, request: Request) -> Registered:
        return await members.register(bearer_of(request), body)

    @router.get("/nodes")
    async def list_nodes(request: Request, *, with_stage_times: bool = False) -> NodeList:
        require_trust(request)
        return members.nodes(with_stage_times=with_stage_times)

    @router.get("/keys")
    async def keys() -> PublicKeys:
        return members.keys()

    @router.post("/nodes/{node_id}/drain")
    async def drain(node_id: str, request: Request) -> Empty:
        require_trust(request)
        await members.drain(NodeId(node_id))
        return Empty()

    @router.post("/nodes/{node_id}/resume")
    async def resume(node_id: str, request: Request) -> Empty:
        require_trust(request)
        await members.resume(NodeId(node_id))
        return Empty()

    @router.post("/nodes/{node_id}/measure", status_code=202)
    async def measure(node_id: str, request: Request) -> Empty:
        require_trust(request)
        await measuring.demand(NodeId(node_id))
        return Empty()

    @router.post("/nodes/{node_id}/quarantine")
    async def quarantine(node_id: str, request: Request, body: QuarantineNode = BY_OPERATOR) -> Empty:
        require_trust(request)
        await members.quarantine(NodeId(node_id), body.reason, until_reinstated=True)
        return Empty()

    @router.post("/nodes/{node_id}/reinstate")
    async def reinstate(node_id: str, request: Request) -> Empty:
        require_trust(request)
        await members.reinstate(NodeId(node_id))
        return Empty()

    return router


def build_evidence_router(evidence: EvidenceInterface) -> APIRouter:
    router = APIRouter()

    @router.get("/evidence")
    async def list_evidence() -> EvidenceList:
        return await evidence.list()

    @router.get("/evidence/{evidence_id}")
    async def find(evidence_id: str) -> dict[str, object]:
        return dict(await evidence.find(evidence_id))

    return router


def build_links_router(relays: RelaysInterface) -> APIRouter:
    router = APIRouter()

    async def take_link(request: Request) -> Response:
        await relays.receive(bearer_of(request), until_broken(request))
        return Response(status_code=204)

    router.add_route("/links", take_link, methods=["POST"])
    return router


def build_router(
    sessions: SessionsInterface, placements: PlacementsInterface, messages: MessagesInterface
) -> APIRouter:
    router = APIRouter()

    @router.post("/messages")
    async def message(request: Request) -> Ack:
        try:
            body = to_coordinator.validate_json(await request.body())
        except ValidationError as error:  # counted against the sender, so not left to the framework
            await messages.unreadable(bearer_of(request))
            raise RequestValidationError(error.errors()) from None
        return await messages.handle(bearer_of(request), body)

    @router.post("/sessions", status_code=202)
    async def open_session(body: OpenSession) -> Empty:
        await sessions.open(body)
        return Empty()

    @router.post("/sessions/{task_id}/cancel")
    async def cancel(task_id: str) -> Empty:
        sessions.cancel(TaskId(task_id))
        return Empty()

    @router.post("/placements", status_code=202)
    async def place(body: Place) -> Empty:
        await placements.place(body)
        return Empty()

    @router.get("/state")
    async def state() -> CoordinatorState:
        return sessions.state()

    return router
