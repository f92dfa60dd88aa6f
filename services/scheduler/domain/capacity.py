"""How many tasks a plan can take now."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared.domain.ids import NodeId
from shared.domain.plan import NodeCapability, PartitionPlan


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


def _slots(plan: PartitionPlan) -> Counter[NodeId]:
    """Slots of its fullest stage that a session takes on each node: stages have slots of their own."""
    per_stage = Counter((seat.node_id, seat.layers) for seat in plan.seats)
    fullest: Counter[NodeId] = Counter()
    for (node_id, _), seats in per_stage.items():
        fullest[node_id] = max(fullest[node_id], seats)
    return fullest
