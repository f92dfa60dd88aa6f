"""How much of a model a node can hold, and how long it takes for a step: the arithmetic under every strategy.

The embedding is counted with the first layer and the head with the last one, so a stage is a run of layers and nothing
else. The time of a stage is the FLOPs of its layers (and head) over the node's speed; looking up the embedding costs
nothing. Bytes would be the other measure, but weights of other types take other times per byte: SmolLM2's head (Q8_0)
takes as long as 5 to 9 of its layers (Q4_1), is 7 layers by FLOPs and 14 by bytes. Between models bytes do count: one
with weights twice as wide decodes half as fast. So work is given in layer-bytes (`shared.domain.measured`): FLOPs times
the bytes per FLOP of the model's layers together.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from shared.domain.layers import ModelInfo
from shared.domain.measured import NOMINAL_DECODE_BYTES_PER_S
from shared.domain.plan import NodeCapability

NOMINAL_PREFILL_SHARE = 0.43
"""Of the time of a one-row call, per row of a prompt: 370 tokens/s through 66 MB without the head (same source)."""


@dataclass(frozen=True, slots=True)
class ModelSums:
    """Running sums over the layers: the value of layers [a, b) is sums[b] - sums[a]."""

    num_layers: int
    weight_bytes: tuple[int, ...]
    kv_bytes_per_token: tuple[int, ...]
    step_flops: tuple[int, ...]
    """Work of one token."""
    prompt_flops: tuple[int, ...]
    """Within a prompt: without the head, which only the last row needs."""
    bytes_per_flop: float
    """Layer-bytes per FLOP."""
    layer_bytes: tuple[int, ...]
    """Weights of each layer alone: no running sum, and without embedding and head."""
    row_bytes: tuple[int, ...]
    """Of the hidden state that leaves each layer: no running sum."""


def sums_of(model: ModelInfo) -> ModelSums:
    weights = [layer.weight_bytes for layer in model.layers]
    prompt = [layer.flops_per_token for layer in model.layers]
    step = [*prompt[:-1], prompt[-1] + 2 * model.n_embd * model.n_vocab]
    weights[0] += model.embedding_bytes
    weights[-1] += model.head_bytes
    return ModelSums(
        num_layers=model.num_layers,
        weight_bytes=tuple(accumulate(weights, initial=0)),
        kv_bytes_per_token=tuple(accumulate((layer.kv_bytes_per_token for layer in model.layers), initial=0)),
        step_flops=tuple(accumulate(step, initial=0)),
        prompt_flops=tuple(accumulate(prompt, initial=0)),
        bytes_per_flop=_bytes_per_flop(model),
        layer_bytes=tuple(layer.weight_bytes for layer in model.layers),
        row_bytes=tuple(layer.activation_bytes for layer in model.layers),
    )


@dataclass(frozen=True, slots=True)
class SeatRoom:
    """What one node offers a stage of one model."""

    node: NodeCapability
    memory_sums: tuple[int, ...]
    """Running sums of the bytes this node needs: weights, and KV cache for all its slots."""
    step_sums: tuple[int, ...]
    """Running sums of the FLOPs of one token."""
    prompt_sums: tuple[int, ...]
    """The same within a prompt."""
    row_bytes: tuple[int, ...]
    """Of the hidden state that leaves each layer."""
    speed: float
    """FLOPs per second of calls with one row."""
    s_per_row_flop: float
    """Of each further row of a call, and of the rows of a prompt."""

    def memory_bytes(self, start: int, end: int) -> int:
        return self.memory_sums[end] - self.memory_sums[start]

    def holds(self, start: int, end: int) -> bool:
        return self.memory_bytes(start, end) <= self.node.memory_bytes

    def step_s(self, start: int, end: int) -> float:
        """Seconds of a one-row decode step through layers [start, end)."""
        return (self.step_sums[end] - self.step_sums[start]) / self.speed

    def row_s(self, start: int, end: int) -> float:
        """Seconds that one more row adds to a decode step."""
        return (self.step_sums[end] - self.step_sums[start]) * self.s_per_row_flop

    def prompt_s(self, start: int, end: int) -> float:
        """Seconds per token of a prompt through layers [start, end)."""
        return (self.prompt_sums[end] - self.prompt_sums[start]) * self.s_per_row_flop

    def reach(self, start: int, limit_s: float) -> int:
        """The largest end such that layers [start, end) fit into memory and take at most `limit_s`."""
        memory, steps = self.memory_sums, self.step_sums
        by_memory = bisect_right(memory, memory[start] + self.node.memory_bytes, start) - 1
        return bisect_right(steps, steps[start] + limit_s * self.speed, start, by_memory + 1) - 1


def decode_bytes_per_s(node: NodeCapability) -> float:
    """Layer-bytes per second of calls with one row: as measured, else by what the node claims."""
    if node.measured is None:
        return node.speed * NOMINAL_DECODE_BYTES_PER_S
    return 1 / node.measured.pace.decode_s_per_byte


def _row_s_per_byte(node: NodeCapability) -> float:
    if node.measured is None:
        return NOMINAL_PREFILL_SHARE / decode_bytes_per_s(node)
    return node.measured.pace.prefill_s_per_byte


def rooms_of(sums: ModelSums, nodes: Sequence[NodeCapability]) -> tuple[SeatRoom, ...]:
    """One room per node, in the same order."""
    by_rows: dict[int, tuple[int, ...]] = {}
    rooms = []
    for node in nodes:
        rows = node.slots * node.context_tokens
        if rows not in by_rows:
            pairs = zip(sums.weight_bytes, sums.kv_bytes_per_token, strict=True)
            by_rows[rows] = tuple(weight + kv * rows for weight, kv in pairs)
        rooms.append(
            SeatRoom(
                node=node,
                memory_sums=by_rows[rows],
                step_sums=sums.step_flops,
                prompt_sums=sums.prompt_flops,
                row_bytes=sums.row_bytes,
                speed=decode_bytes_per_s(node) / sums.bytes_per_flop,
                s_per_row_flop=_row_s_per_byte(node) * sums.bytes_per_flop,
            )
        )
    return tuple(rooms)


def _bytes_per_flop(model: ModelInfo) -> float:
    """1 for models without figures (no real one)."""
    flops = sum(layer.flops_per_token for layer in model.layers)
    weight_bytes = sum(layer.weight_bytes for layer in model.layers)
    return weight_bytes / flops if flops and weight_bytes else 1.0
