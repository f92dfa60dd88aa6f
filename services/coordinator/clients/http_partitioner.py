"""The partitioner over HTTP."""

import asyncio
from collections.abc import Sequence
from urllib.parse import quote

from services.coordinator.domain.token_table import TokenTable
from services.coordinator.ports import Partitioner
from shared.contracts.partitioner import ModelList, PlanRequest, PlanResponse
from shared.domain.errors import ModelNotFound, ProtocolViolation
from shared.domain.ids import ModelId
from shared.domain.layers import ModelInfo
from shared.domain.plan import NodeCapability, PartitionPlan, Seating, for_plans
from shared.resilience.peer_group import PeerGroup

PLAN_TIMEOUT_S = 5.0
MAX_TABLE_BYTES = 64 * 1024 * 1024


class HttpPartitioner(Partitioner):
    def __init__(self, client: PeerGroup) -> None:
        self._client = client

    async def plan(
        self,
        model_id: ModelId,
        nodes: Sequence[NodeCapability],
        *,
        num_stages: int | None,
        seating: Seating,
    ) -> PartitionPlan:
        told = tuple(map(for_plans, nodes))
        wanted = PlanRequest(model_id=model_id, nodes=told, num_stages=num_stages, seating=seating)
        answer = await self._client.post("/plans", wanted, PlanResponse, timeout_s=PLAN_TIMEOUT_S, idempotent=True)
        return answer.plan

    async def model(self, model_id: ModelId) -> ModelInfo:
        catalogue = await self._client.get("/models", ModelList)
        for model in catalogue.models:
            if model.model_id == model_id:
                return model
        raise ModelNotFound(f"the partitioner has no model {model_id}")

    async def token_table(self, model_id: ModelId) -> TokenTable:
        block = bytearray()
        async for chunk in self._client.download(f"/models/{quote(model_id, safe='')}/token-bytes"):
            block += chunk
            if len(block) > MAX_TABLE_BYTES:
                raise ProtocolViolation(f"the token table of {model_id} has more than {MAX_TABLE_BYTES} bytes")
        return await asyncio.to_thread(TokenTable, bytes(block))
