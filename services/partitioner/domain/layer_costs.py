"""What a layer costs: operations, bytes to the next stage, bytes of KV cache."""

from dataclasses import dataclass

from shared.domain.hidden import FLOAT_BYTES
from shared.domain.layers import LayerInfo

ATTENTION_ROWS = 512
"""Rows of context that the attention's share of FLOPs is given for: the mean of a session of 1,024 tokens."""
_Q8_0_BLOCK = 32
_Q8_0_BLOCK_BYTES = 34
_F16_BYTES = 2


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer as the model file describes it."""

    index: int
    n_embd: int
    weight_bytes: int
    matrix_elements: int
    """Weights that take part in a multiplication: those of tensors with two or more dimensions."""
    num_heads: int
    num_kv_heads: int
    key_length: int
    """Elements of a key of one head."""
    value_length: int


def layer_info(shape: LayerShape) -> LayerInfo:
    """FLOPs per token = 2 x matrix elements + 2 x heads x (key + value length) x `ATTENTION_ROWS`.

    The first term is one multiplication and one addition per weight, the second the scores and the weighted sum over
    the context (Kaplan et al. 2020, Table 1, for a given context instead of the longest).
    """
    head_length = shape.key_length + shape.value_length
    return LayerInfo(
        index=shape.index,
        name=f"blk.{shape.index}",
        weight_bytes=shape.weight_bytes,
        flops_per_token=2 * shape.matrix_elements + 2 * shape.num_heads * head_length * ATTENTION_ROWS,
        activation_bytes=shape.n_embd * FLOAT_BYTES,
        kv_bytes_per_token=_kv_bytes(shape),
    )


def _kv_bytes(shape: LayerShape) -> int:
    """q8_0 keeps 32 elements in 34 bytes; a head size it cannot hold makes the engine fall back to f16."""
    elements = shape.num_kv_heads * (shape.key_length + shape.value_length)
    if shape.key_length % _Q8_0_BLOCK or shape.value_length % _Q8_0_BLOCK:
        return elements * _F16_BYTES
    return elements // _Q8_0_BLOCK * _Q8_0_BLOCK_BYTES
