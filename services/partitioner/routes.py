"""HTTP of the partitioner: parse, call, answer."""

from collections.abc import Iterable
from hashlib import blake2b

from fastapi import APIRouter, Request, Response

from services.partitioner.file_response import file_response, is_known
from services.partitioner.schemas import DroppedPlans, RebalanceRequest, RebalanceResponse
from services.partitioner.service.catalogue import CatalogueInterface
from services.partitioner.service.pipelines import PipelinesInterface
from services.partitioner.service.plans import PartitionInterface
from shared.contracts.partitioner import (
    ModelList,
    PipelinesResponse,
    PlanRequest,
    PlanResponse,
    PreviewRequest,
    PreviewResponse,
    QualityRequest,
    QualityResponse,
    RefusedFile,
    StageFileInfo,
)
from shared.domain.errors import WrongServiceToken
from shared.domain.ids import ModelId, NodeId
from shared.domain.layers import ModelInfo
from shared.domain.plan import NodeCapability, Objective, PlanInput

PUBLIC_PATHS = ("/models",)
"""Not covered by the service token as a whole: workers, which do not hold it, fetch their stages here. The other
routes below it ask for the token themselves."""


def build_models_router(catalogue: CatalogueInterface) -> APIRouter:
    router = APIRouter()

    def model_list() -> ModelList:
        models, refused = catalogue.list_models()
        return ModelList(models=models, refused=tuple(RefusedFile(file=one.file, reason=one.reason) for one in refused))

    @router.get("/models")
    async def list_models(request: Request) -> ModelList:
        _require_service_token(request)
        return model_list()

    @router.post("/models/rescan")
    async def rescan(request: Request) -> ModelList:
        _require_service_token(request)
        await catalogue.rescan()
        return model_list()

    @router.get("/models/{model_id}")
    async def get_model(model_id: ModelId, request: Request) -> ModelInfo:
        _require_service_token(request)
        return await catalogue.get_model(model_id)

    @router.get("/models/{model_id}/vocabulary")
    async def get_vocabulary(model_id: ModelId, request: Request) -> Response:
        _require_service_token(request)
        return file_response(await catalogue.vocabulary_file(model_id), request)

    @router.get("/models/{model_id}/token-bytes")
    async def get_token_bytes(model_id: ModelId, request: Request) -> Response:
        _require_service_token(request)
        table = await catalogue.token_table(model_id)
        etag = f'"{blake2b(table, digest_size=16).hexdigest()}"'
        if is_known(request, etag):
            return Response(status_code=304, headers={"ETag": etag})
        return Response(table, media_type="application/octet-stream", headers={"ETag": etag})

    return router


def build_stages_router(catalogue: CatalogueInterface) -> APIRouter:
    """For workers, without the service token: the bytes of the models served here are no secret."""
    router = APIRouter()

    @router.get("/models/{model_id}/stages/{start}-{end}/info")
    async def get_stage_info(model_id: ModelId, start: int, end: int) -> StageFileInfo:
        model = await catalogue.get_model(model_id)
        stage = await catalogue.stage_file(model_id, start, end)
        return StageFileInfo(
            model_id=model_id,
            model_root=model.root,
            start=start,
            end=end,
            size_bytes=stage.size_bytes,
            stage_digest=stage.stage_digest(),
            n_embd=model.n_embd,
            num_layers=model.num_layers,
        )

    @router.get("/models/{model_id}/stages/{start}-{end}")
    async def get_stage(model_id: ModelId, start: int, end: int, request: Request) -> Response:
        return file_response(await catalogue.stage_file(model_id, start, end), request)

    return router


def build_plans_router(
    plans: PartitionInterface,
    pipelines: PipelinesInterface,
    catalogue: CatalogueInterface,
    *,
    default_strategy: str,
    default_objective: Objective,
    window_tokens: int,
) -> APIRouter:
    """`window_tokens`: that are verified together."""
    router = APIRouter()

    async def input_of(body: PlanRequest) -> PlanInput:
        return PlanInput(
            model=await catalogue.get_model(body.model_id),
            nodes=tuple(sorted(body.nodes, key=lambda node: node.node_id)),
            strategy=body.strategy or default_strategy,
            num_stages=body.num_stages,
            seating=body.seating,
            objective=body.objective or default_objective,
        )

    @router.post("/plans")
    async def create_plan(body: PlanRequest) -> PlanResponse:
        wanted = await input_of(body)
        plan, is_cached = await plans.compute_plan(wanted)
        return PlanResponse(plan=plan, model=wanted.model, cached=is_cached)

    @router.post("/plans/pipelines")
    async def list_pipelines(body: PlanRequest) -> PipelinesResponse:
        return PipelinesResponse(pipelines=await pipelines.pipelines(await input_of(body)))

    @router.post("/plans/preview")
    async def preview(body: PreviewRequest) -> PreviewResponse:
        wanted = await input_of(body.wanted)
        nodes = _by_id(wanted.nodes)
        found = await pipelines.would_be(wanted)
        plan = found[0].plan
        return PreviewResponse(
            pipelines=found,
            prediction=plans.predict(plan, wanted.model, nodes, body.load(window_tokens=window_tokens)),
            quality=plans.rate(plan, wanted.model, nodes),
        )

    @router.post("/plans/advice")
    async def advise(body: RebalanceRequest) -> RebalanceResponse:
        wanted = await input_of(body.wanted)
        plan, _ = await plans.compute_plan(wanted)
        return RebalanceResponse(plan=plan, advice=plans.advise(body.present, plan, wanted))

    @router.post("/plans/quality")
    async def rate_plan(body: QualityRequest) -> QualityResponse:
        model = await catalogue.get_model(body.plan.model_id)
        return QualityResponse(quality=plans.rate(body.plan, model, _by_id(body.nodes)))

    @router.delete("/plans")
    async def forget_plans(model_id: ModelId | None = None) -> DroppedPlans:
        return DroppedPlans(dropped=plans.forget(model_id) + pipelines.forget(model_id))

    return router


def _by_id(nodes: Iterable[NodeCapability]) -> dict[NodeId, NodeCapability]:
    return {node.node_id: node for node in nodes}


def _require_service_token(request: Request) -> None:
    if not request.state.is_trusted:
        raise WrongServiceToken("this path is for control services: it needs the service token")
