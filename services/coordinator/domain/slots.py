"""Counts the seats that sessions hold, per stage of a node."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from shared.domain.errors import NoCapacity
from shared.domain.ids import NodeId
from shared.domain.plan import NodeCapability, Partition

RETRY_AFTER_S = 1.0  # a slot becomes free when some answer ends; nobody knows when

StageOfNode = tuple[NodeId, str, int, int]


class SlotLedger:
    """Seats taken and given back all together, so that a session never holds half a ring or half its lanes.

    A node with several stages has slots of its own for each.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[StageOfNode, ...]] = {}
        self._used: Counter[StageOfNode] = Counter()

    def reserve(
        self,
        holder: Hashable,
        model_root: str,
        seats: Sequence[Partition],
        capabilities: Mapping[NodeId, NodeCapability],
    ) -> None:
        """Take a slot at every seat, those of all lanes, or raise `NoCapacity`.

        What the holder held before is given back first.
        """
        self.release(holder)
        wanted = Counter((seat.node_id, model_root, seat.layers.start, seat.layers.end) for seat in seats)
        for stage, slots in wanted.items():
            capability = capabilities.get(stage[0])
            if capability is None:
                raise NoCapacity(f"node {stage[0]} is not ready for seats", retry_after_s=RETRY_AFTER_S)
            if self._used[stage] + slots > capability.slots:
                raise NoCapacity(
                    f"all {capability.slots} slots of node {stage[0]} are taken", retry_after_s=RETRY_AFTER_S
                )
        self._held[holder] = tuple(wanted.elements())
        self._used.update(wanted)

    def has_room(self, node: NodeCapability, model_root: str, seat: Partition) -> bool:
        """Whether the node could take this seat now."""
        return self._used[node.node_id, model_root, seat.layers.start, seat.layers.end] < node.slots

    def release(self, holder: Hashable) -> None:
        """Give back what the holder has, if anything."""
        self._used.subtract(self._held.pop(holder, ()))
        self._used += Counter()  # drops the zeros

    def used(self, node_id: NodeId) -> int:
        """Slots taken at the fullest stage of a node."""
        return max((count for stage, count in self._used.items() if stage[0] == node_id), default=0)
