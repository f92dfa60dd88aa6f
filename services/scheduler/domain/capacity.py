"""How many tasks a plan can take now, and which plan each task is to go by."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shared.domain.ids import NodeId
from shared.domain.plan import NodeCapability, PartitionPlan, Pipeline


@dataclass(frozen=True, slots=True)
class ReadyNode:
    """A node that takes new sessions."""

    capability: NodeCapability
    boot_id: str
    """New with each start of the node: what it held before is gone."""
    slots_used: int

    @property
    def node_id(self) -> NodeId:
        return self.capability.node_id


def free_slots(nodes: Iterable[ReadyNode]) -> dict[NodeId, int]:
    return {node.node_id: max(node.capability.slots - node.slots_used, 0) for node in nodes}


def claimable(plan: PartitionPlan, free: Mapping[NodeId, int]) -> int:
    """Sessions of this plan that fit: each takes one slot of each stage that a node holds."""
    return min((free.get(node_id, 0) // slots for node_id, slots in _slots(plan).items()), default=0)


def reserve(plan: PartitionPlan, sessions: int, free: Mapping[NodeId, int]) -> dict[NodeId, int]:
    """What is free once so many more sessions of this plan run."""
    taken = _slots(plan)
    return {node_id: slots - sessions * taken[node_id] for node_id, slots in free.items()}


@dataclass(frozen=True, slots=True)
class Share:
    """So many of the next sessions go by this plan."""

    plan: PartitionPlan
    sessions: int


def spread(
    pipelines: Sequence[Pipeline], sessions: int, nodes: Iterable[ReadyNode], free: Mapping[NodeId, int]
) -> tuple[Share, ...]:
    """Divides up to `sessions` among the pipelines, one after the other to where it may expect most tokens per second.

    That is a pipeline's predicted rate divided by the sessions on it, the new one included. Those that run are counted
    by the slots taken on its executors, since they may go by plans that are in use no longer. In order of pipelines,
    those without any left out.
    """
    slots = {node.node_id: node.capability.slots for node in nodes}
    counts: Counter[int] = Counter()
    left = dict(free)

    def expected(index: int) -> float:
        pipeline = pipelines[index]
        executors = [seat.node_id for seat in pipeline.plan.lanes[0].partitions]
        running = max(slots.get(node_id, 0) - left.get(node_id, 0) for node_id in executors)
        return pipeline.tokens_per_s / (running + 1)

    for _ in range(sessions):
        open_ones = [index for index, pipeline in enumerate(pipelines) if claimable(pipeline.plan, left) > 0]
        if not open_ones:
            break
        chosen = max(open_ones, key=lambda index: (expected(index), -index))
        counts[chosen] += 1
        left = reserve(pipelines[chosen].plan, 1, left)
    return tuple(Share(pipelines[index].plan, count) for index, count in sorted(counts.items()))


def _slots(plan: PartitionPlan) -> Counter[NodeId]:
    """Slots of its fullest stage that a session takes on each node: stages have slots of their own."""
    per_stage = Counter((seat.node_id, seat.layers) for seat in plan.seats)
    fullest: Counter[NodeId] = Counter()
    for (node_id, _), seats in per_stage.items():
        fullest[node_id] = max(fullest[node_id], seats)
    return fullest
