"""The pieces of a GGUF header as bytes."""

import struct
from collections.abc import Sequence

from shared.llama.gguf import MAGIC, TensorType, ValueType


def preamble(version: int, *, num_tensors: int, num_keys: int) -> bytes:
    """What a file begins with."""
    return MAGIC + struct.pack("<IQQ", version, num_tensors, num_keys)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def uint32_entry(name: str, number: int) -> bytes:
    return text(name) + struct.pack("<II", ValueType.UINT32, number)


def float32_entry(name: str, number: float) -> bytes:
    return text(name) + struct.pack("<If", ValueType.FLOAT32, number)


def string_entry(name: str, value: str) -> bytes:
    return text(name) + struct.pack("<I", ValueType.STRING) + text(value)


def array_entry(name: str, item_type: ValueType, count: int, items: bytes) -> bytes:
    return text(name) + struct.pack("<IIQ", ValueType.ARRAY, item_type, count) + items


def tensor_entry(name: str, shape: Sequence[int], tensor_type: TensorType, offset: int) -> bytes:
    """`shape`: as GGUF has it, the length of a row first. `offset`: from the start of the data."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", tensor_type.code, offset)
