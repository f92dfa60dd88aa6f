"""What a worker measured of itself and of the way to its peers: the figures that predictions rest on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from shared.domain.errors import InvalidInput
from shared.domain.ids import NodeId

MAX_LINKS = 16
"""Peers that a node tells of: bounds the wire, whatever the size of the cluster."""
_MIN_S_PER_BYTE, _MAX_S_PER_BYTE = 1e-16, 1e-3  # from a thousand times the fastest memory to a kilobyte per second
_MAX_RTT_S = 60.0
_MIN_BYTES_PER_S, _MAX_BYTES_PER_S = 1.0, 1e15


@dataclass(frozen=True, slots=True)
class PeerLink:
    """The way to one peer and back."""

    peer: NodeId
    rtt_s: float
    """Of the smallest frame there and back, software of both ends included."""
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A *layer-byte* is the unit of work: a byte of the weights of an average layer; the head counts by its FLOPs."""

    decode_s_per_byte: float
    """Seconds per layer-byte of a call with one row."""
    prefill_s_per_byte: float
    """Seconds per layer-byte and token within a prompt."""
    links: tuple[PeerLink, ...] = ()
    """At most `MAX_LINKS`, each to another peer."""


def check_measured(node_id: NodeId, measured: Measured) -> None:
    """Raise `InvalidInput`, naming the field, for figures that cannot be true or are too many."""
    if len(measured.links) > MAX_LINKS:
        raise InvalidInput(f"links may name {MAX_LINKS} peers, not {len(measured.links)}", param="measured.links")
    if len({link.peer for link in measured.links} | {node_id}) != len(measured.links) + 1:
        raise InvalidInput("links must go to other nodes, to each at most once", param="measured.links")
    for name, value, low, high in _figures(measured):
        if not math.isfinite(value) or not low <= value <= high:
            raise InvalidInput(f"{name} must lie in [{low:g}, {high:g}], not {value}", param=f"measured.{name}")


def _figures(measured: Measured) -> Iterator[tuple[str, float, float, float]]:
    yield "decode_s_per_byte", measured.decode_s_per_byte, _MIN_S_PER_BYTE, _MAX_S_PER_BYTE
    yield "prefill_s_per_byte", measured.prefill_s_per_byte, _MIN_S_PER_BYTE, _MAX_S_PER_BYTE
    for link in measured.links:
        yield "links.rtt_s", link.rtt_s, 0.0, _MAX_RTT_S
        yield "links.bytes_per_s", link.bytes_per_s, _MIN_BYTES_PER_S, _MAX_BYTES_PER_S
