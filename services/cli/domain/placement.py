"""Whether a model stands: its layers, in stages, on nodes that can serve."""

from collections.abc import Iterable, Sequence

from shared.contracts.coordinator import NodeView
from shared.domain.session import NodeState


def covers(ranges: Iterable[tuple[int, int]], num_layers: int) -> bool:
    """Whether layers [0, num_layers) can be walked from range to range."""
    reached = {0}
    for start, end in sorted(ranges):
        if start in reached:
            reached.add(end)
    return num_layers in reached


def is_placed(nodes: Sequence[NodeView], model: str, num_layers: int) -> bool:
    seats = [seat for node in nodes if node.state is NodeState.READY for seat in node.stages]
    return covers(((seat.start, seat.end) for seat in seats if seat.model == model), num_layers)
