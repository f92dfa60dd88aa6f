"""The partitioner and the coordinator over HTTP, as a scheduler calls them."""

from fastapi import FastAPI, HTTPException

from shared.contracts.base import Empty
from shared.contracts.coordinator import NodeList, NodeView, OpenSession, Place
from shared.contracts.partitioner import ModelList, PipelinesResponse, PlanRequest, PlanResponse
from shared.domain.layers import LayerInfo, ModelInfo
from shared.domain.plan import Pipeline
from shared.domain.session import NodeState
from shared.domain.task import FinishReason
from shared.domain.task_state import TaskEvent
from shared.registry.base import Commit, Finish
from shared.registry.redis_registry import RedisTaskRegistry
from tests.fakes.scheduler_peers import make_node, make_plan
from tests.fakes.tasks import MODEL, make_tokens


class Peers:
    """Partitioner and coordinator in one app; sessions end with one token as soon as they are opened."""

    def __init__(self, registry: RedisTaskRegistry) -> None:
        self.registry = registry
        self.ready = True
        self.broken = False
        self.boot = "first"
        self.finishes = True
        self.opened: list[OpenSession] = []
        self.cancelled: list[str] = []
        self.placed: list[Place] = []

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/livez")
        async def livez() -> dict[str, str]:
            return {"boot": self.boot}

        @app.get("/models")
        async def models() -> ModelList:
            return ModelList(models=(_model(),))

        @app.post("/plans")
        async def plans(body: PlanRequest) -> PlanResponse:
            plan = make_plan(body.model_id, *(node.node_id for node in body.nodes))
            return PlanResponse(plan=plan, model=_model(), cached=True)

        app.post("/plans/pipelines")(_pipelines)

        @app.get("/nodes")
        async def nodes() -> NodeList:
            if self.broken:
                raise HTTPException(503)
            return NodeList(nodes=(_node("a"), _node("b")) if self.ready else ())

        @app.post("/sessions", status_code=202)
        async def sessions(body: OpenSession) -> Empty:
            await self.open_session(body)
            return Empty()

        @app.post("/sessions/{task_id}/cancel")
        async def cancel(task_id: str) -> Empty:
            self.cancelled.append(task_id)
            return Empty()

        @app.post("/placements", status_code=202)
        async def place(body: Place) -> Empty:
            self.placed.append(body)
            return Empty()

        return app

    async def open_session(self, body: OpenSession) -> None:
        self.opened.append(body)
        epoch, _, _ = await self.registry.open_session(
            body.task_id, attempt=body.attempt, plan_id=body.plan.plan_id, coordinator="c", lease_s=60.0
        )
        await self.registry.advance(body.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=epoch)
        if self.finishes:
            last = Commit(body.task_id, epoch, 0, make_tokens(7))
            finish = Finish(FinishReason.LENGTH, 1)
            await self.registry.finish(body.task_id, epoch=epoch, finish=finish, last=last)


async def _pipelines(body: PlanRequest) -> PipelinesResponse:
    plan = make_plan(body.model_id, *(node.node_id for node in body.nodes))
    return PipelinesResponse(pipelines=(Pipeline(plan, 1.0),))


def _model() -> ModelInfo:
    layer = LayerInfo(0, "blk.0", weight_bytes=1, flops_per_token=1, activation_bytes=4, kv_bytes_per_token=1)
    return ModelInfo(
        model_id=MODEL,
        root="root",
        architecture="llama",
        n_embd=1,
        n_vocab=10,
        context_tokens=64,
        layers=(layer, layer),
        embedding_bytes=1,
        head_bytes=1,
        file_bytes=4,
        has_chat_template=False,
        splittable=True,
    )


def _node(name: str) -> NodeView:
    node = make_node(name, slots=32)
    return NodeView(
        node_id=node.node_id,
        state=NodeState.READY,
        address=f"http://{name}",
        boot_id=node.boot_id,
        capability=node.capability,
        stages=(),
        slots_used=0,
        heartbeat_age_ms=1,
    )
