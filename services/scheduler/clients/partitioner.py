"""The partitioner over HTTP."""

from collections.abc import Sequence

from services.scheduler.ports import Partitioner
from shared.contracts.partitioner import ModelList, PipelinesResponse, PlanRequest, PlanResponse
from shared.domain.ids import ModelId
from shared.domain.plan import NodeCapability, PartitionPlan, Pipeline, Seating
from shared.resilience.peer_group import PeerGroup

PLAN_TIMEOUT_S = 5.0  # the first plan for many nodes, on a busy machine
PIPELINES_TIMEOUT_S = 20.0  # about twice as many plans as pipelines are tried


class HttpPartitioner(Partitioner):
    def __init__(self, client: PeerGroup) -> None:
        self._client = client

    async def plan(self, model_id: ModelId, nodes: Sequence[NodeCapability], seating: Seating) -> PartitionPlan:
        wanted = PlanRequest(model_id=model_id, nodes=tuple(nodes), seating=seating)
        answer = await self._client.post("/plans", wanted, PlanResponse, timeout_s=PLAN_TIMEOUT_S, idempotent=True)
        return answer.plan

    async def pipelines(
        self, model_id: ModelId, nodes: Sequence[NodeCapability], seating: Seating
    ) -> tuple[Pipeline, ...]:
        wanted = PlanRequest(model_id=model_id, nodes=tuple(nodes), seating=seating)
        answer = await self._client.post(
            "/plans/pipelines", wanted, PipelinesResponse, timeout_s=PIPELINES_TIMEOUT_S, idempotent=True
        )
        return answer.pipelines

    async def model_ids(self) -> frozenset[ModelId]:
        catalogue = await self._client.get("/models", ModelList)
        return frozenset(model.model_id for model in catalogue.models)
