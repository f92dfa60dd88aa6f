"""How many batches a ring keeps in flight and how many cores each seat's engine calls may use.

From the measurements in engine.md section 9: on one machine one big batch beats several small ones, and more threads
than cores make the barriers of the engine spin (a sixfold loss).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shared.domain.plan import NodeCapability


@dataclass(frozen=True, slots=True)
class Pacing:
    decode_batches_in_flight: int
    threads: tuple[int, ...]
    """Per seat, in order of stages."""


def pace(seats: Sequence[NodeCapability], *, beside: Sequence[NodeCapability] = ()) -> Pacing:
    """`seats`: the node of each stage, in order; `beside`: nodes that work at the same time, for another lane."""
    sharing = {node.node_id: node.machine for node in (*seats, *beside)}
    nodes_on = Counter(sharing.values())
    is_one_host = len({node.machine for node in seats}) == 1
    if is_one_host and not beside:
        return Pacing(1, tuple(max(1, node.cores) for node in seats))
    threads = tuple(max(1, node.cores // nodes_on[node.machine]) for node in seats)
    return Pacing(1 if is_one_host else len(seats), threads)


def replay_threads(node: NodeCapability, replaying: Sequence[NodeCapability]) -> int:
    """For rows that `node` computes again, as do the nodes of `replaying`: all other seats wait for them."""
    on_its_host = {each.node_id for each in (node, *replaying) if each.machine == node.machine}
    return max(1, node.cores // len(on_its_host))
