"""A stage of no model, the same on every node: what their speed is compared by before they hold anything.

Four middle layers of the llama family with random weights, wide enough to be more than the inner caches hold. Q4_0,
because most models that are served here have weights of four bits.
"""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shared.llama.cutting import DUMMY_VOCAB
from shared.llama.gguf import DEFAULT_ALIGNMENT, TENSOR_TYPES, VERSIONS, TensorType, padding
from shared.llama.gguf_writing import float32_entry, preamble, string_entry, tensor_entry, uint32_entry

TRIAL_VERSION = 1
"""Figures of another trial would compare with nothing: rises with any change here."""
N_LAYERS = 4
N_EMBD = 1_024
_FEED_FORWARD = 2_816
_N_HEADS, _N_KV_HEADS, _HEAD_SIZE = 16, 4, 64
_CONTEXT_TOKENS = 4_096
_SCALE = 0.01  # of the weights, so that rows stay finite through all layers
_F32, _F16, _Q4_0 = TENSOR_TYPES[0], TENSOR_TYPES[1], TENSOR_TYPES[2]

_MATRICES = (
    ("attn_q", (N_EMBD, _N_HEADS * _HEAD_SIZE)),
    ("attn_k", (N_EMBD, _N_KV_HEADS * _HEAD_SIZE)),
    ("attn_v", (N_EMBD, _N_KV_HEADS * _HEAD_SIZE)),
    ("attn_output", (_N_HEADS * _HEAD_SIZE, N_EMBD)),
    ("ffn_gate", (N_EMBD, _FEED_FORWARD)),
    ("ffn_up", (N_EMBD, _FEED_FORWARD)),
    ("ffn_down", (_FEED_FORWARD, N_EMBD)),
)


def trial_stage_file(folder: Path) -> Path:
    """The file in `folder`, written if it is not there yet, or not whole."""
    path = folder / f"trial-{TRIAL_VERSION}.gguf"
    header = _header()
    size_bytes = len(header) + sum(_padded_size(shape, kind) for _, shape, kind in _tensors())
    if not path.exists() or path.stat().st_size != size_bytes:
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(b"".join((header, *_data())))
        part.replace(path)
    return path


def layer_bytes() -> int:
    """Weights of all layers."""
    return sum(_size(shape, kind) for name, shape, kind in _tensors() if name.startswith("blk."))


def _tensors() -> Iterator[tuple[str, tuple[int, ...], TensorType]]:
    """As a middle stage has them (shared.llama.cutting)."""
    yield "token_embd.weight", (N_EMBD, DUMMY_VOCAB), _F16
    yield "output_norm.weight", (N_EMBD,), _F32
    for layer in range(N_LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{norm}.weight", (N_EMBD,), _F32
        for name, shape in _MATRICES:
            yield f"blk.{layer}.{name}.weight", shape, _Q4_0


def _header() -> bytes:
    keys = list(_keys())
    parts = [preamble(VERSIONS[-1], num_tensors=len(list(_tensors())), num_keys=len(keys)), *keys]
    offset = 0
    for name, shape, kind in _tensors():
        parts.append(tensor_entry(name, shape, kind, offset))
        offset += _padded_size(shape, kind)
    header = b"".join(parts)
    return header + bytes(padding(len(header), DEFAULT_ALIGNMENT))


def _data() -> Iterator[bytes]:
    random = np.random.Generator(np.random.Philox(key=TRIAL_VERSION))
    for _, shape, kind in _tensors():
        values = _values(random, shape, kind)
        yield values + bytes(padding(len(values), DEFAULT_ALIGNMENT))


def _keys() -> Iterator[bytes]:
    yield string_entry("general.architecture", "llama")
    yield string_entry("tokenizer.ggml.model", "no_vocab")
    for name, number in (
        ("block_count", N_LAYERS),
        ("context_length", _CONTEXT_TOKENS),
        ("embedding_length", N_EMBD),
        ("feed_forward_length", _FEED_FORWARD),
        ("attention.head_count", _N_HEADS),
        ("attention.head_count_kv", _N_KV_HEADS),
        ("rope.dimension_count", _HEAD_SIZE),
        ("vocab_size", DUMMY_VOCAB),
    ):
        yield uint32_entry(f"llama.{name}", number)
    yield float32_entry("llama.attention.layer_norm_rms_epsilon", 1e-5)


def _values(random: np.random.Generator, shape: tuple[int, ...], kind: TensorType) -> bytes:
    if kind is _F32:
        return np.ones(shape, "<f4").tobytes()
    if kind is _F16:
        return bytes(_size(shape, kind))
    num_blocks = _size(shape, kind) // kind.block_bytes
    blocks = random.integers(0, 256, (num_blocks, kind.block_bytes), np.uint8)  # a scale, then nibbles around 8
    blocks[:, :2] = np.frombuffer(struct.pack("<e", _SCALE), np.uint8)
    return blocks.tobytes()


def _size(shape: tuple[int, ...], kind: TensorType) -> int:
    return math.prod(shape) // kind.block_elements * kind.block_bytes


def _padded_size(shape: tuple[int, ...], kind: TensorType) -> int:
    size = _size(shape, kind)
    return size + padding(size, DEFAULT_ALIGNMENT)
