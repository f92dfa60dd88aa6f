"""Writes GGUF files by hand, so that tests can break any byte of them. Knows the format by itself on purpose."""

import struct
from dataclasses import dataclass, field

ALIGNMENT = 32
STRING, ARRAY, UINT32, FLOAT32, BOOL, INT32 = 8, 9, 4, 6, 7, 5
F32 = 0


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def string(name: str, value: str) -> bytes:
    return text(name) + struct.pack("<I", STRING) + text(value)


def uint32(name: str, value: int) -> bytes:
    return text(name) + struct.pack("<II", UINT32, value)


def array(name: str, item_type: int, items: list[bytes], count: int | None = None) -> bytes:
    head = struct.pack("<IIQ", ARRAY, item_type, len(items) if count is None else count)
    return text(name) + head + b"".join(items)


def strings(name: str, values: list[str]) -> bytes:
    return array(name, STRING, [text(value) for value in values])


def uint32s(name: str, values: list[int]) -> bytes:
    return array(name, UINT32, [struct.pack("<I", value) for value in values])


@dataclass(slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    data: bytes
    code: int = F32
    offset: int | None = None
    """None: where it belongs."""


def f32(name: str, *shape: int, fill: int = 1) -> Tensor:
    size = 4
    for dimension in shape:
        size *= dimension
    return Tensor(name, shape, bytes([fill]) * size)


@dataclass(slots=True)
class Gguf:
    keys: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    num_tensors: int | None = None
    num_keys: int | None = None

    def to_bytes(self) -> bytes:
        num_tensors = len(self.tensors) if self.num_tensors is None else self.num_tensors
        num_keys = len(self.keys) if self.num_keys is None else self.num_keys
        head = self.magic + struct.pack("<IQQ", self.version, num_tensors, num_keys) + b"".join(self.keys)
        data = b""
        for tensor in self.tensors:
            offset = len(data) if tensor.offset is None else tensor.offset
            shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            head += text(tensor.name) + shape + struct.pack("<IQ", tensor.code, offset)
            data += _padded(tensor.data)
        return _padded(head) + data


def small_model(*, num_layers: int = 2, architecture: str = "llama", more_keys: list[bytes] | None = None) -> Gguf:
    """The least that `open_model` takes: width 4, 3 tokens, one matrix per layer. No engine would load it."""
    keys = [
        string("general.architecture", architecture),
        uint32(f"{architecture}.block_count", num_layers),
        uint32(f"{architecture}.embedding_length", 4),
        uint32(f"{architecture}.context_length", 64),
        uint32(f"{architecture}.attention.head_count", 1),
    ]
    layers = [f32(f"blk.{layer}.ffn_up.weight", 4, 2, fill=layer % 100 + 1) for layer in range(num_layers)]
    ends = [f32("token_embd.weight", 4, 3, fill=101), f32("output_norm.weight", 4, fill=102)]
    return Gguf(keys=keys + (more_keys or []), tensors=[*ends, *layers])


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
