"""The partitioner and the coordinator as the scheduler sees them."""

from collections.abc import Callable, Sequence

from services.scheduler.domain.capacity import ReadyNode
from services.scheduler.ports import Coordinator, Partitioner
from shared.contracts.coordinator import OpenSession
from shared.domain.errors import ButterflyError, NoCapacity, VerificationUnavailable
from shared.domain.ids import Epoch, ModelId, NodeId, PlanId, TaskId
from shared.domain.plan import Lane, LayerRange, NodeCapability, Partition, PartitionPlan, Pipeline, Seating
from shared.domain.task_state import TaskEvent
from shared.registry.base import TaskRegistry


def make_node(name: str, *, slots: int = 16, used: int = 0, boot_id: str = "boot-1") -> ReadyNode:
    capability = NodeCapability(
        node_id=NodeId(name), memory_bytes=1 << 30, speed=1.0, slots=slots, context_tokens=2_048
    )
    return ReadyNode(capability=capability, boot_id=boot_id, slots_used=used)


def make_plan(model_id: ModelId, *node_ids: NodeId, num_lanes: int = 1) -> PartitionPlan:
    """One stage of one layer on each node; further lanes by rotation."""

    def lane(index: int) -> Lane:
        return Lane(
            index,
            tuple(
                Partition(stage, node_ids[(stage - index) % len(node_ids)], LayerRange(stage, stage + 1))
                for stage in range(len(node_ids))
            ),
        )

    return PartitionPlan(
        plan_id=PlanId(f"plan-{'-'.join(node_ids)}"),
        model_id=model_id,
        model_root="root",
        strategy="uniform",
        lanes=tuple(lane(index) for index in range(num_lanes)),
    )


class FakePartitioner(Partitioner):
    """Seats one stage on every node; needs at least `min_nodes`."""

    def __init__(self, *models: ModelId, min_nodes: int = 1) -> None:
        self.models = set(models)
        self.min_nodes = min_nodes
        self.asked: list[Seating] = []
        self.num_pipelines = 1
        self.asked_for_models = 0
        self.error: ButterflyError | None = None

    async def plan(self, model_id: ModelId, nodes: Sequence[NodeCapability], seating: Seating) -> PartitionPlan:
        self.asked.append(seating)
        if self.error is not None:
            raise self.error
        if len(nodes) < self.min_nodes:
            raise NoCapacity(f"the model needs {self.min_nodes} nodes, {len(nodes)} are ready")
        needed = seating.num_lanes + seating.hold
        if needed > len(nodes):
            raise VerificationUnavailable(f"{seating.num_lanes} lanes need {needed} nodes, {len(nodes)} are ready")
        return make_plan(model_id, *(node.node_id for node in nodes), num_lanes=seating.num_lanes)

    async def pipelines(
        self, model_id: ModelId, nodes: Sequence[NodeCapability], seating: Seating
    ) -> tuple[Pipeline, ...]:
        """As many of equal rates as `num_pipelines`; the nodes are dealt out to them in turn."""
        groups = [nodes[index :: self.num_pipelines] for index in range(self.num_pipelines)]
        return tuple([Pipeline(await self.plan(model_id, group, seating), 1.0) for group in groups])

    async def model_ids(self) -> frozenset[ModelId]:
        self.asked_for_models += 1
        if self.error is not None:
            raise self.error
        return frozenset(self.models)


class FakeCoordinator(Coordinator):
    """Opens sessions in the registry as the real one does, unless `refuse` has an error for the task."""

    def __init__(self, registry: TaskRegistry, *nodes: ReadyNode) -> None:
        self._registry = registry
        self.nodes = list(nodes)
        """Ready."""
        self.suspects: list[ReadyNode] = []
        self.opened: list[OpenSession] = []
        self.epochs: dict[TaskId, Epoch] = {}
        self.cancelled: list[TaskId] = []
        self.placed: list[PartitionPlan] = []
        self.refuse: Callable[[TaskId], ButterflyError | None] = lambda _: None
        self.error: ButterflyError | None = None
        """What every call raises."""

    async def ready_nodes(self) -> tuple[ReadyNode, ...]:
        self._check()
        return tuple(self.nodes)

    async def present_nodes(self) -> tuple[NodeCapability, ...]:
        self._check()
        return tuple(node.capability for node in (*self.nodes, *self.suspects))

    async def open_session(self, wanted: OpenSession) -> None:
        self._check()
        refusal = self.refuse(wanted.task_id)
        if refusal is not None:
            raise refusal
        epoch, _, _ = await self._registry.open_session(
            wanted.task_id, attempt=wanted.attempt, plan_id=wanted.plan.plan_id, coordinator="c", lease_s=60.0
        )
        await self._registry.advance(wanted.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=epoch)
        self.epochs[wanted.task_id] = epoch
        self.opened.append(wanted)

    async def cancel_session(self, task_id: TaskId) -> None:
        self.cancelled.append(task_id)
        self._check()

    async def place(self, plan: PartitionPlan) -> None:
        self._check()
        self.placed.append(plan)

    def _check(self) -> None:
        if self.error is not None:
            raise self.error
