"""What it takes to send rows from node to node: latency, and bytes over bandwidth."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.partitioner.domain.placement import SeatRoom
from shared.domain.ids import NodeId
from shared.domain.measured import PeerLink
from shared.domain.plan import NodeCapability

TOKEN_ID_BYTES = 4
"""What the last stage sends back to the first."""


class Hop(NamedTuple):
    """One way."""

    latency_s: float
    s_per_byte: float

    def transfer_s(self, size_bytes: int) -> float:
        """How long the link is taken."""
        return size_bytes * self.s_per_byte

    def total_s(self, size_bytes: int) -> float:
        return self.latency_s + size_bytes * self.s_per_byte


ON_ONE_HOST = Hop(0.9e-3, 1e-9)
"""Assumed of nodes that share a machine: 7.6 ms of compute took 10.3 ms in three workers
(bench/results/throughput-20261123-202614.json)."""
ON_A_NETWORK = Hop(1.2e-3, 8e-9)
"""Assumed where nothing was measured: the same software, and an Ethernet of 1 Gbit/s."""
_NO_HOP = Hop(0.0, 0.0)


class Hops:
    """The hops among some nodes, by place in `rooms`.

    A link counts as either end measured it; where both did, as the one that sends. Nodes that did not measure each
    other are taken for as far apart as the farthest peer that either of them measured, and no nearer than assumed: a
    way nobody has tried must not look better than those that were.
    """

    def __init__(self, rooms: Sequence[SeatRoom]) -> None:
        self._nodes = [room.node for room in rooms]
        self._links = {node.node_id: _links_of(node) for node in self._nodes}
        self._worst = {node_id: _worst(links.values()) for node_id, links in self._links.items()}
        self._known: dict[tuple[int, int], Hop] = {}

    def between(self, sender: int, receiver: int) -> Hop:
        ends = sender, receiver
        if ends not in self._known:
            self._known[ends] = self._found(sender, receiver)
        return self._known[ends]

    def _found(self, sender: int, receiver: int) -> Hop:
        if sender == receiver:
            return _NO_HOP
        one, other = self._nodes[sender], self._nodes[receiver]
        told = self._links[one.node_id].get(other.node_id) or self._links[other.node_id].get(one.node_id)
        if told is not None:
            return told
        if one.host and one.host == other.host:
            return ON_ONE_HOST
        ends = self._worst[one.node_id], self._worst[other.node_id]
        return Hop(max(end.latency_s for end in ends), max(end.s_per_byte for end in ends))


class NoHops(Hops):
    """For strategies that do not look at links."""

    def between(self, sender: int, receiver: int) -> Hop:
        return _NO_HOP


def _links_of(node: NodeCapability) -> dict[NodeId, Hop]:
    links: tuple[PeerLink, ...] = node.measured.links if node.measured is not None else ()
    return {link.peer: Hop(link.rtt_s / 2, 1 / link.bytes_per_s) for link in links}


def _worst(hops: Iterable[Hop]) -> Hop:
    known = [ON_A_NETWORK, *hops]
    return Hop(max(hop.latency_s for hop in known), max(hop.s_per_byte for hop in known))
