"""Counts the seats that sessions hold, per stage of a node."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from services.coordinator.domain.kinship import StageKey
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
        self._yielding: dict[Hashable, Callable[[], None]] = {}
        self._used: Counter[StageOfNode] = Counter()
        self._elsewhere: dict[NodeId, Mapping[StageKey, int]] = {}

    def elsewhere(self, node_id: NodeId, taken: Mapping[StageKey, int]) -> None:
        """What a node says of its slots that are taken by sessions of other coordinators, in place of what it said."""
        if taken:
            self._elsewhere[node_id] = taken
        else:
            self._elsewhere.pop(node_id, None)

    def reserve(
        self,
        holder: Hashable,
        model_root: str,
        seats: Sequence[Partition],
        capabilities: Mapping[NodeId, NodeCapability],
        *,
        yields: Callable[[], None] | None = None,
    ) -> None:
        """Take a slot at every seat, those of all lanes, or raise `NoCapacity`.

        What the holder held before is given back first. `yields`: this holder gives way to all that do not, and is told
        so when it has lost its slots.
        """
        self.release(holder)
        wanted = Counter((seat.node_id, model_root, seat.layers.start, seat.layers.end) for seat in seats)
        for stage in wanted:
            if stage[0] not in capabilities:
                raise NoCapacity(f"node {stage[0]} is not ready for seats", retry_after_s=RETRY_AFTER_S)
        used = self._used if yields is not None else self._used_for_good()
        for stage, slots in wanted.items():
            capability = capabilities[stage[0]]
            if used[stage] + self._others(stage) + slots > capability.slots:
                raise NoCapacity(
                    f"all {capability.slots} slots of node {stage[0]} are taken", retry_after_s=RETRY_AFTER_S
                )
        for other, tell in list(self._yielding.items()):
            if any(
                self._used[stage] + self._others(stage) + wanted[stage] > capabilities[stage[0]].slots
                for stage in wanted
            ):
                self.release(other)
                tell()
        self._held[holder] = tuple(wanted.elements())
        self._used.update(wanted)
        if yields is not None:
            self._yielding[holder] = yields

    def has_room(self, node: NodeCapability, model_root: str, seat: Partition) -> bool:
        """Whether the node could take this seat now."""
        stage = node.node_id, model_root, seat.layers.start, seat.layers.end
        return self._used[stage] + self._others(stage) < node.slots

    def release(self, holder: Hashable) -> None:
        """Give back what the holder has, if anything."""
        self._yielding.pop(holder, None)
        self._used.subtract(self._held.pop(holder, ()))
        self._used += Counter()  # drops the zeros

    def used(self, node_id: NodeId) -> int:
        """Slots taken at the fullest stage of a node, by holders that do not give way."""
        own = self._used_for_good()
        stages = {stage for stage in own if stage[0] == node_id}
        stages |= {(node_id, *key) for key in self._elsewhere.get(node_id, ())}
        return max((own[stage] + self._others(stage) for stage in stages), default=0)

    def _others(self, stage: StageOfNode) -> int:
        node_id, model_root, start, end = stage
        return self._elsewhere.get(node_id, {}).get((model_root, start, end), 0)

    def _used_for_good(self) -> Counter[StageOfNode]:
        if not self._yielding:
            return self._used
        lent = Counter(stage for holder in self._yielding for stage in self._held[holder])
        return self._used - lent
