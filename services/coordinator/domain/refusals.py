"""Rule 7: what no honest node says proves nothing, for anyone may have fed it; said often enough it is odd."""

from shared.domain.ids import NodeId

REFUSALS_TO_QUARANTINE = 3
WITHIN_S = 600.0


class Refusals:
    """Messages of nodes, known by their token, that were refused."""

    def __init__(self) -> None:
        self._at_s: dict[NodeId, tuple[float, ...]] = {}

    def add(self, node_id: NodeId, *, now_s: float) -> bool:
        """Whether the node is to be put in quarantine; then its count begins anew."""
        self._at_s = {node: times for node, times in self._at_s.items() if now_s - times[-1] < WITHIN_S}
        recent = [at_s for at_s in self._at_s.get(node_id, ()) if now_s - at_s < WITHIN_S]
        self._at_s[node_id] = (*recent, now_s)
        if len(self._at_s[node_id]) < REFUSALS_TO_QUARANTINE:
            return False
        del self._at_s[node_id]
        return True
