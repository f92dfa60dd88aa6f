"""Calls to the partitioner: the model catalogue, the vocabularies' files, what plans would be."""

import asyncio
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

from services.api.ports import Catalogue, Planner
from shared.contracts.partitioner import ModelList, PreviewRequest, PreviewResponse, QualityRequest, QualityResponse
from shared.domain.errors import ButterflyError, ModelNotFound
from shared.domain.ids import ModelId
from shared.domain.layers import ModelInfo
from shared.domain.plan_figures import PlanQuality
from shared.resilience.peer_group import PeerGroup

KEPT_S = 2.0  # how long a list of models is used again
PLAN_LIMIT_S = 10.0  # thousands of nodes take seconds
LOOK_AGAIN_S = 0.5  # a model not in the list may have been added just now, but is not asked for more often


class HttpCatalogue(Catalogue):
    """Asks at most twice a second; goes on with the last list while the partitioner is away."""

    def __init__(self, peer: PeerGroup, *, now: Callable[[], float]) -> None:
        self._peer = peer
        self._now = now
        self._models: dict[ModelId, ModelInfo] | None = None
        self._asked_s = 0.0
        self._asking = asyncio.Lock()

    async def models(self) -> tuple[ModelInfo, ...]:
        return tuple((await self._known(KEPT_S)).values())

    async def model(self, model_id: ModelId) -> ModelInfo:
        found = (await self._known(KEPT_S)).get(model_id) or (await self._known(LOOK_AGAIN_S)).get(model_id)
        if found is None:
            raise ModelNotFound(f"the model {model_id[:200]!r} does not exist here; GET /v1/models lists what does")
        return found

    async def _known(self, kept_s: float) -> dict[ModelId, ModelInfo]:
        async with self._asking:  # who comes meanwhile gets the same answer, not the last one: that may be old
            if self._models is not None and self._now() - self._asked_s < kept_s:
                return self._models
            self._asked_s = self._now()
            try:
                answer = await self._peer.get("/models", ModelList)
            except ButterflyError:
                if self._models is None:
                    raise
                self._asked_s = self._now()  # who waited here need not wait for it again
                return self._models
            self._models = {model.model_id: model for model in sorted(answer.models, key=lambda each: each.model_id)}
            return self._models

    def vocabulary_file(self, model_id: ModelId) -> AsyncIterator[bytes]:
        return self._peer.download(f"/models/{quote(model_id, safe='')}/vocabulary")


class HttpPlanner(Planner):
    def __init__(self, peer: PeerGroup) -> None:
        self._peer = peer

    async def preview(self, wanted: PreviewRequest) -> PreviewResponse:
        return await self._peer.post("/plans/preview", wanted, PreviewResponse, timeout_s=PLAN_LIMIT_S, idempotent=True)

    async def rate(self, given: QualityRequest) -> PlanQuality:
        answer = await self._peer.post(
            "/plans/quality", given, QualityResponse, timeout_s=PLAN_LIMIT_S, idempotent=True
        )
        return answer.quality
