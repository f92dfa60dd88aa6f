"""Questions about plans, before the cluster goes by them."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.api.json_body import read_json_object
from services.api.plan_schemas import PreviewBody, QualityBody
from services.api.schemas import parse_body
from services.api.service.plans import PlansInterface


def build_plans_router(plans: PlansInterface) -> APIRouter:
    router = APIRouter()

    async def preview(request: Request) -> Response:
        body = parse_body(PreviewBody, await read_json_object(request))
        return JSONResponse(await plans.preview(body.to_wanted()))

    async def quality(request: Request) -> Response:
        body = parse_body(QualityBody, await read_json_object(request))
        return JSONResponse(await plans.rate(body.to_given()))

    router.add_api_route("/v1/plans/preview", preview, methods=["POST"], response_model=None)
    router.add_api_route("/v1/plans/quality", quality, methods=["POST"], response_model=None)
    return router
