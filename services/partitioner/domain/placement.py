"""How much of a model a node can hold, and how long it takes for a step: the arithmetic under every strategy.

The embedding is counted with the first layer and the head with the last one, so a stage is a run of layers and nothing
else. The time of a stage is the FLOPs of its layers (and head) over the node's speed; looking up the embedding costs
nothing. Bytes would be the other measure, but weights of other types take other times per byte: SmolLM2's head (Q8_0)
takes as long as 5 to 9 of its layers (Q4_1), is 7 layers by FLOPs and 14 by bytes.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from shared.domain.layers import ModelInfo
from shared.domain.plan import NodeCapability


@dataclass(frozen=True, slots=True)
class ModelSums:
    """Running sums over the layers: the value of layers [a, b) is sums[b] - sums[a]."""

    num_layers: int
    weight_bytes: tuple[int, ...]
    kv_bytes_per_token: tuple[int, ...]
    step_flops: tuple[int, ...]
    """Work of one token."""
    layer_bytes: tuple[int, ...]
    """Weights of each layer alone: no running sum, and without embedding and head."""


def sums_of(model: ModelInfo) -> ModelSums:
    weights = [layer.weight_bytes for layer in model.layers]
    steps = [layer.flops_per_token for layer in model.layers]
    weights[0] += model.embedding_bytes
    weights[-1] += model.head_bytes
    steps[-1] += 2 * model.n_embd * model.n_vocab
    return ModelSums(
        num_layers=model.num_layers,
        weight_bytes=_running(weights),
        kv_bytes_per_token=_running([layer.kv_bytes_per_token for layer in model.layers]),
        step_flops=_running(steps),
        layer_bytes=tuple(layer.weight_bytes for layer in model.layers),
    )


@dataclass(frozen=True, slots=True)
class SeatRoom:
    """What one node offers a stage of one model."""

    node: NodeCapability
    memory_sums: tuple[int, ...]
    """Running sums of the bytes this node needs: weights, and KV cache for all its slots."""
    step_sums: tuple[int, ...]

    def memory_bytes(self, start: int, end: int) -> int:
        return self.memory_sums[end] - self.memory_sums[start]

    def holds(self, start: int, end: int) -> bool:
        return self.memory_bytes(start, end) <= self.node.memory_bytes

    def step_s(self, start: int, end: int) -> float:
        """Relative time of a decode step through layers [start, end)."""
        return (self.step_sums[end] - self.step_sums[start]) / self.node.speed

    def reach(self, start: int, limit_s: float) -> int:
        """The largest end such that layers [start, end) fit into memory and take at most `limit_s`."""
        by_memory = bisect_right(self.memory_sums, self.memory_sums[start] + self.node.memory_bytes) - 1
        by_time = bisect_right(self.step_sums, self.step_sums[start] + limit_s * self.node.speed) - 1
        return min(by_memory, by_time)


def rooms_of(sums: ModelSums, nodes: Sequence[NodeCapability]) -> tuple[SeatRoom, ...]:
    """One room per node, in the same order."""
    by_rows: dict[int, tuple[int, ...]] = {}
    rooms = []
    for node in nodes:
        rows = node.slots * node.context_tokens
        if rows not in by_rows:
            pairs = zip(sums.weight_bytes, sums.kv_bytes_per_token, strict=True)
            by_rows[rows] = tuple(weight + kv * rows for weight, kv in pairs)
        rooms.append(SeatRoom(node, by_rows[rows], sums.step_flops))
    return tuple(rooms)


def _running(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(accumulate(values, initial=0))
