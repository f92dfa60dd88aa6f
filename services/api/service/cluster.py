"""What the cluster is and does: models, nodes, one snapshot of everything."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from services.api.domain.cluster_view import Json, model_resource, node_resources
from services.api.ports import Catalogue, Nodes, Scheduler, Services
from shared.contracts.coordinator import NodeView
from shared.domain.errors import ButterflyError, NodeNotFound
from shared.domain.ids import ModelId
from shared.domain.layers import ModelInfo
from shared.runtime.clock import Clock

STATE_KEPT_S = 1.0
STATE_SCHEMA = 1

T = TypeVar("T")


class ClusterInterface(ABC):
    """Calls may overlap."""

    @abstractmethod
    async def models(self) -> Json:
        """The models that are served; those that cannot be placed now have `ready` false. Raises `PeerUnavailable`."""

    @abstractmethod
    async def model(self, model_id: str) -> Json:
        """Raises `ModelNotFound`, `PeerUnavailable`."""

    @abstractmethod
    async def nodes(self) -> Json:
        """Raises `PeerUnavailable`."""

    @abstractmethod
    async def node(self, node_id: str) -> Json:
        """Raises `NodeNotFound`, `PeerUnavailable`."""

    @abstractmethod
    async def keys(self) -> Json:
        """The public keys of coordinator and nodes. Raises `PeerUnavailable`."""

    @abstractmethod
    async def state(self) -> Json:
        """The whole cluster, made at most once a second. Parts whose service is away are null or empty."""


class ClusterService(ClusterInterface):
    def __init__(
        self,
        *,
        catalogue: Catalogue,
        nodes: Nodes,
        scheduler: Scheduler,
        services: Services,
        clock: Clock,
        context_tokens: int,
    ) -> None:
        """`context_tokens`: rows that each slot of the cluster holds."""
        self._catalogue = catalogue
        self._nodes = nodes
        self._scheduler = scheduler
        self._services = services
        self._clock = clock
        self._context_tokens = context_tokens
        self._state: tuple[float, Json] | None = None
        self._making_state = asyncio.Lock()

    async def models(self) -> Json:
        models, nodes = await self._catalogue.models(), await self._known_nodes()
        return {"object": "list", "data": [self._model_resource(model, nodes) for model in models]}

    async def model(self, model_id: str) -> Json:
        return self._model_resource(await self._catalogue.model(ModelId(model_id)), await self._known_nodes())

    async def nodes(self) -> Json:
        nodes, models = await self._nodes.nodes(), await self._known_models()
        return {"object": "list", "data": node_resources(nodes, models)}

    async def node(self, node_id: str) -> Json:
        for resource in node_resources(await self._nodes.nodes(), await self._known_models()):
            if resource["node_id"] == node_id:
                return resource
        raise NodeNotFound("there is no such node")

    async def keys(self) -> Json:
        return (await self._nodes.keys()).model_dump(mode="json")

    async def state(self) -> Json:
        async with self._making_state:
            now_s = self._clock.now_s()
            if self._state is None or now_s - self._state[0] >= STATE_KEPT_S:
                self._state = (now_s, await self._made_state())
            return self._state[1]

    async def _made_state(self) -> Json:
        health, nodes, models, queue = await asyncio.gather(
            self._services.health(),
            self._known_nodes(),
            self._known_models(),
            _or_none(self._scheduler.queue),
        )
        moment = datetime.fromtimestamp(self._clock.wall_s(), tz=UTC)
        services: Json = {"api": {"ready": True, "error": None}}
        services |= {name: {"ready": each.ready, "error": each.error} for name, each in health.items()}
        return {
            "schema": STATE_SCHEMA,
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "services": services,
            "nodes": node_resources(nodes, models),
            "models": [self._model_resource(model, nodes) for model in models],
            "queue": None
            if queue is None
            else {
                "depth": queue.depth,
                "oldest_age_s": queue.oldest_age_s,
                "by_priority": {str(priority): count for priority, count in queue.by_priority.items()},
            },
            "tasks": None if queue is None else {"running": queue.running},
        }

    async def _known_nodes(self) -> tuple[NodeView, ...]:
        """The nodes; none while the coordinator is away: what depends on them is then not ready."""
        return await _or_none(self._nodes.nodes) or ()

    async def _known_models(self) -> tuple[ModelInfo, ...]:
        """The models; none while the partitioner is away."""
        return await _or_none(self._catalogue.models) or ()

    def _model_resource(self, model: ModelInfo, nodes: tuple[NodeView, ...]) -> Json:
        return model_resource(model, nodes, context_tokens=self._context_tokens)


async def _or_none(ask: Callable[[], Awaitable[T]]) -> T | None:
    try:
        return await ask()
    except ButterflyError:
        return None
