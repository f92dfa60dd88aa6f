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


def pace(seats: Sequence[NodeCapability]) -> Pacing:
    """`seats`: the node of each stage, in order."""
    # A node that does not say on which host it runs is taken for a host of its own.
    hosts = [node.host or f"node:{node.node_id}" for node in seats]
    seats_on = Counter(hosts)
    if len(seats_on) == 1:
        return Pacing(1, tuple(max(1, node.cores) for node in seats))
    threads = tuple(max(1, node.cores // seats_on[host]) for node, host in zip(seats, hosts, strict=True))
    return Pacing(len(seats), threads)
