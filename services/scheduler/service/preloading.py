"""Has models loaded before a task asks for them."""

import logging
from collections.abc import Sequence

from services.scheduler.domain.capacity import ReadyNode
from services.scheduler.ports import Coordinator, Partitioner
from shared.domain.errors import ButterflyError
from shared.domain.ids import ModelId, NodeId, PlanId
from shared.domain.plan import Seating
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0

Runs = frozenset[tuple[NodeId, str]]
"""Which nodes are there, and in which run of each."""


class Preloader:
    """Places each model's pipelines once the ready nodes have stayed the same for one look, and again when the nodes
    or the pipelines change.

    Nodes join one after the other: a plan for the first of them would have it load layers that are others' soon after.
    """

    def __init__(
        self,
        *,
        partitioner: Partitioner,
        coordinator: Coordinator,
        clock: Clock,
        models: Sequence[ModelId],
        seating: Seating,
    ) -> None:
        """`seating`: the lanes that most tasks will need."""
        self._partitioner = partitioner
        self._coordinator = coordinator
        self._clock = clock
        self._models = tuple(models)
        self._seating = seating
        self._seen: Runs = frozenset()
        self._placed: dict[ModelId, tuple[Runs, tuple[PlanId, ...]]] = {}
        self._trouble: dict[ModelId, str] = {}

    async def run_once(self) -> None:
        """To be called in a loop."""
        await self.look()
        await self._clock.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        try:
            nodes = await self._coordinator.ready_nodes()
        except ButterflyError:
            return  # a coordinator that is away has no nodes: the next look may find it
        runs = frozenset((node.node_id, node.boot_id) for node in nodes)
        settled, self._seen = runs == self._seen, runs
        if not settled or not runs:
            return
        for model_id in self._models:
            await self._place(model_id, nodes, runs)

    async def _place(self, model_id: ModelId, nodes: Sequence[ReadyNode], runs: Runs) -> None:
        try:
            pipelines = await self._partitioner.pipelines(model_id, [node.capability for node in nodes], self._seating)
            wanted = runs, tuple(pipeline.plan.plan_id for pipeline in pipelines)
            if self._placed.get(model_id) == wanted:
                return
            for pipeline in pipelines:
                await self._coordinator.place(pipeline.plan)
        except ButterflyError as error:
            if self._trouble.get(model_id) != error.message:
                log.warning("model_not_placed", extra={"model": model_id, "reason": error.message})
            self._trouble[model_id] = error.message
        else:
            log.info("model_placed", extra={"model": model_id, "nodes": len(nodes), "plan_ids": wanted[1]})
            self._trouble.pop(model_id, None)
            self._placed[model_id] = wanted
