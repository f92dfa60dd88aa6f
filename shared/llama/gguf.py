"""Reads the header of a GGUF file: keys, tensor places, nothing else.

The file may come from anywhere, so every count, length and offset is checked against the file before it is used, and
memory stays at one window of the file whatever the header claims: large arrays (tokenizers have 49k to 262k entries)
are stepped over, never decoded.

Layout, all little-endian (versions 2 and 3 are the same bytes):
    "GGUF", u32 version, u64 number of tensors, u64 number of keys;
    per key: name, u32 type, value. A string is u64 length, UTF-8 bytes; an array is u32 item type, u64 count, items;
    per tensor: name, u32 number of dimensions, u64 per dimension (fastest first), u32 type, u64 offset in the data;
    zeros up to `general.alignment`, then the tensors in that order, each padded to the alignment.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from shared.domain.errors import BadModelFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

_MAX_KEYS = 65_536
_MAX_TENSORS = 131_072
_MAX_KEY_NAME_BYTES = 4_096
_MAX_TENSOR_NAME_BYTES = 63  # ggml keeps names in 64 bytes, the last one is zero
_MAX_ARRAY_STRINGS = 16_777_216  # over all arrays of a file: bounds the time a scan can take
_MAX_ALIGNMENT = 1 << 20
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 1 << 62
_MAX_DECODED_BYTES = 4 << 20  # of one value: the longest chat templates have some hundred kilobytes
_WINDOW_BYTES = 1 << 20


class ValueType(IntEnum):
    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


Scalar = int | float | bool | str
Value = Scalar | list[Scalar]

SCALARS: dict[ValueType, struct.Struct] = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<?"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """How ggml packs numbers: `block_elements` of them into `block_bytes`."""

    code: int
    name: str
    block_elements: int
    block_bytes: int


TENSOR_TYPES: dict[int, TensorType] = {
    code: TensorType(code, name, elements, size)
    for code, name, elements, size in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
}


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key: what it is and where its bytes lie in the file."""

    name: str
    value_type: ValueType
    item_type: ValueType | None
    """Of an array, else None."""
    count: int
    """Items of an array, else 1."""
    entry_start: int
    """Where the entry (name, type, value) begins."""
    items_start: int
    """Where the value begins; of an array: its first item."""
    stop: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]
    """Fastest dimension first, as in the file: `token_embd.weight` is (n_embd, n_vocab)."""
    tensor_type: TensorType
    start: int
    """Absolute place of the first byte in the file."""
    size_bytes: int

    @property
    def num_elements(self) -> int:
        elements = 1
        for dimension in self.shape:
            elements *= dimension
        return elements


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A parsed header. Holds no open file; reads check that the file is still the one that was parsed."""

    path: Path
    size_bytes: int
    mtime_ns: int
    version: int
    alignment: int
    keys: dict[str, KeyValue]
    tensors: dict[str, TensorInfo]
    """In file order."""
    data_start: int

    def open(self) -> BinaryIO:
        """The file for reading. Raises `BadModelFile` when it is gone or changed since it was parsed."""
        try:
            handle = self.path.open("rb")
        except OSError as error:
            raise BadModelFile(f"{self.path.name}: cannot be opened: {error.strerror}") from error
        found = os.fstat(handle.fileno())
        if (found.st_size, found.st_mtime_ns) != (self.size_bytes, self.mtime_ns):
            handle.close()
            raise BadModelFile(f"{self.path.name}: changed on disk since it was read; scan the models folder again")
        return handle

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of the file. Raises `BadModelFile` as `open` does."""
        with self.open() as handle:
            handle.seek(start)
            data = handle.read(stop - start)
        if len(data) != stop - start:
            raise BadModelFile(f"{self.path.name}: ends inside bytes {start}-{stop}")
        return data

    def value(self, name: str) -> Value | None:
        """The decoded value, None when the key is absent. Raises `BadModelFile` for one too large to be decoded."""
        key = self.keys.get(name)
        if key is None:
            return None
        if key.stop - key.items_start > _MAX_DECODED_BYTES:
            raise BadModelFile(f"{self.path.name}: the value of {name} has {key.stop - key.items_start} bytes")
        raw = self.read(key.items_start, key.stop)
        if key.item_type is not None:
            return self._items(key, key.item_type, raw)
        if key.value_type is ValueType.STRING:
            return self._text(key, raw[8:])
        number: Scalar = SCALARS[key.value_type].unpack(raw)[0]
        return number

    def integer(self, name: str) -> int | None:
        """The value of an integer key, None when absent. Raises `BadModelFile` for any other type."""
        found = self.value(name)
        if found is None or (isinstance(found, int) and not isinstance(found, bool)):
            return found
        raise BadModelFile(f"{self.path.name}: {name} is {_kind(found)}, not an integer")

    def text(self, name: str) -> str | None:
        """The value of a string key, None when absent. Raises `BadModelFile` for any other type."""
        found = self.value(name)
        if found is None or isinstance(found, str):
            return found
        raise BadModelFile(f"{self.path.name}: {name} is {_kind(found)}, not a string")

    def strings(self, name: str) -> Iterator[bytes]:
        """The undecoded items of an array of strings, however long. Raises `BadModelFile` when it is no such array."""
        key = self.keys.get(name)
        if key is None or key.item_type is not ValueType.STRING:
            raise BadModelFile(f"{self.path.name}: {name} is not an array of strings")
        raw = self.read(key.items_start, key.stop)
        return _strings(raw, key.count)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """The items of an array of integers, however long; None when absent. Raises `BadModelFile` for another type."""
        key = self.keys.get(name)
        if key is None:
            return None
        if key.item_type is None or key.item_type not in SCALARS:
            raise BadModelFile(f"{self.path.name}: {name} is not an array of integers")
        code = SCALARS[key.item_type].format[1:]
        if code in "fd?":
            raise BadModelFile(f"{self.path.name}: {name} is not an array of integers")
        return struct.unpack(f"<{key.count}{code}", self.read(key.items_start, key.stop))

    def _items(self, key: KeyValue, item_type: ValueType, raw: bytes) -> list[Scalar]:
        if item_type is ValueType.STRING:
            return [self._text(key, item) for item in _strings(raw, key.count)]
        return [number for (number,) in SCALARS[item_type].iter_unpack(raw)]

    def _text(self, key: KeyValue, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise BadModelFile(f"{self.path.name}: the value of {key.name} is not UTF-8") from error


def read_gguf(path: Path) -> GgufFile:
    """Parse the header of the file at `path`. Raises `BadModelFile` that says what is wrong and at which byte."""
    try:
        with path.open("rb") as handle:
            return _Parser(path, handle).parse()
    except OSError as error:
        raise BadModelFile(f"{path.name}: cannot be read: {error.strerror}") from error


def padding(offset: int, alignment: int) -> int:
    """Bytes that are missing from `offset` to the next multiple of `alignment`."""
    return -offset % alignment


def _strings(raw: bytes, count: int) -> Iterator[bytes]:
    length_at = struct.Struct("<Q").unpack_from
    position = 0
    for _ in range(count):
        (length,) = length_at(raw, position)
        position += 8
        yield raw[position : position + length]
        position += length


def _kind(found: Value) -> str:
    return "an array" if isinstance(found, list) else type(found).__name__


class _Parser:
    """Walks once through the header with a window of the file in memory."""

    def __init__(self, path: Path, handle: BinaryIO) -> None:
        stat = os.fstat(handle.fileno())
        self._path, self._handle = path, handle
        self._size, self._mtime_ns = stat.st_size, stat.st_mtime_ns
        self._window = b""
        self._window_start = 0
        self._at = 0
        self._array_strings = 0

    def parse(self) -> GgufFile:
        version, num_tensors, num_keys = self._preamble()
        keys: dict[str, KeyValue] = {}
        for _ in range(num_keys):
            key = self._key()
            if key.name in keys:
                raise self._bad(f"the key {key.name} appears twice", key.entry_start)
            keys[key.name] = key
        alignment = self._alignment(keys.get("general.alignment"))
        listed = [self._tensor() for _ in range(num_tensors)]
        data_start = self._at + padding(self._at, alignment)
        return GgufFile(
            path=self._path,
            size_bytes=self._size,
            mtime_ns=self._mtime_ns,
            version=version,
            alignment=alignment,
            keys=keys,
            tensors=self._place(listed, data_start, alignment),
            data_start=data_start,
        )

    def _preamble(self) -> tuple[int, int, int]:
        if self._size < 24:
            raise self._bad(f"has {self._size} bytes, less than any GGUF header", 0)
        magic = self._take(4)
        if magic != MAGIC:
            raise self._bad(f"begins with {magic!r}, not {MAGIC!r}: no GGUF file", 0)
        version = self._uint32()
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "a big-endian file" if swapped in VERSIONS else f"GGUF version {version}"
            raise self._bad(f"is {kind}; version 2 and 3, little-endian, are read", 4)
        num_tensors, num_keys = self._uint64(), self._uint64()
        if num_tensors > _MAX_TENSORS:
            raise self._bad(f"claims {num_tensors} tensors; at most {_MAX_TENSORS} are read", 8)
        if num_keys > _MAX_KEYS:
            raise self._bad(f"claims {num_keys} keys; at most {_MAX_KEYS} are read", 16)
        return version, num_tensors, num_keys

    def _key(self) -> KeyValue:
        entry_start = self._at
        name = self._name(_MAX_KEY_NAME_BYTES, "key")
        value_type = self._value_type(name)
        item_type, count = None, 1
        if value_type is ValueType.ARRAY:
            item_type = self._value_type(name)
            count = self._uint64()
        items_start = self._at
        self._skip_items(name, item_type or value_type, count)
        return KeyValue(name, value_type, item_type, count, entry_start, items_start, self._at)

    def _value_type(self, name: str) -> ValueType:
        at, code = self._at, self._uint32()
        try:
            return ValueType(code)
        except ValueError as error:
            raise self._bad(f"the key {name} has the unknown type {code}", at) from error

    def _skip_items(self, name: str, item_type: ValueType, count: int) -> None:
        if item_type is ValueType.ARRAY:
            raise self._bad(f"the key {name} is an array of arrays, which no model has", self._at)
        if item_type is ValueType.STRING:
            self._skip_strings(name, count)
            return
        stop = self._at + count * SCALARS[item_type].size
        if stop > self._size:
            raise self._bad(f"the key {name} claims {count} items, more than the file holds", self._at)
        self._at = stop

    def _skip_strings(self, name: str, count: int) -> None:
        self._array_strings += count
        if self._array_strings > _MAX_ARRAY_STRINGS or count * 8 > self._size - self._at:
            raise self._bad(f"the key {name} claims {count} strings, more than can be read", self._at)
        length_at = struct.Struct("<Q").unpack_from
        window, start, size = self._window, self._window_start, self._size
        at, window_stop = self._at, self._window_start + len(self._window)
        for _ in range(count):  # some 100k rounds: kept free of calls
            if at + 8 > window_stop or at < start:
                self._at = at
                self._load(8)
                window, start = self._window, self._window_start
                window_stop = start + len(window)
            at += 8 + length_at(window, at - start)[0]
            if at > size:
                raise self._bad(f"a string of the key {name} runs past the end of the file", self._at)
        self._at = at

    def _alignment(self, key: KeyValue | None) -> int:
        if key is None:
            return DEFAULT_ALIGNMENT
        if key.value_type is not ValueType.UINT32:
            raise self._bad("general.alignment is not an unsigned 32-bit number", key.entry_start)
        resume, self._at = self._at, key.items_start
        alignment = self._uint32()
        self._at = resume
        if not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._bad(
                f"general.alignment is {alignment}, not a power of two up to {_MAX_ALIGNMENT}", key.items_start
            )
        return alignment

    def _tensor(self) -> TensorInfo:
        """The next tensor as listed: `start` still counts from the start of the data."""
        at = self._at
        name = self._name(_MAX_TENSOR_NAME_BYTES, "tensor")
        num_dimensions = self._uint32()
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise self._bad(f"the tensor {name} has {num_dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}", at)
        shape = tuple(self._uint64() for _ in range(num_dimensions))
        code = self._uint32()
        tensor_type = TENSOR_TYPES.get(code)
        if tensor_type is None:
            raise self._bad(f"the tensor {name} has the unknown type {code}", at)
        elements = 1
        for dimension in shape:
            elements *= dimension
            if not 1 <= elements <= _MAX_ELEMENTS:
                raise self._bad(f"the tensor {name} has the impossible shape {shape}", at)
        block = tensor_type.block_elements
        if shape[0] % block:
            raise self._bad(f"the tensor {name} has rows of {shape[0]}: {tensor_type.name} packs {block} at a time", at)
        return TensorInfo(name, shape, tensor_type, self._uint64(), elements // block * tensor_type.block_bytes)

    def _place(self, listed: list[TensorInfo], data_start: int, alignment: int) -> dict[str, TensorInfo]:
        """Tensors must follow each other without gap or overlap in the order they are listed: the engine asks it."""
        tensors: dict[str, TensorInfo] = {}
        expected = 0
        for tensor in listed:
            start, stop = data_start + tensor.start, data_start + tensor.start + tensor.size_bytes
            if tensor.name in tensors:
                raise self._bad(f"the tensor {tensor.name} appears twice", start)
            if tensor.start != expected:
                relation = "overlaps the one before it" if tensor.start < expected else "leaves a gap"
                raise self._bad(f"the tensor {tensor.name} {relation}: it is at {tensor.start}, not {expected}", start)
            if stop > self._size:
                missing = stop - self._size
                raise self._bad(f"ends inside the tensor {tensor.name}: {missing} bytes are missing", self._size)
            tensors[tensor.name] = replace(tensor, start=start)
            expected = tensor.start + tensor.size_bytes + padding(tensor.size_bytes, alignment)
        return tensors

    def _name(self, limit: int, kind: str) -> str:
        at, length = self._at, self._uint64()
        if not 1 <= length <= limit:
            raise self._bad(f"a {kind} name has {length} bytes, not 1 to {limit}", at)
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self._bad(f"a {kind} name is not UTF-8", at) from error

    def _uint32(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _uint64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def _take(self, length: int) -> bytes:
        """The next `length` bytes; callers keep it below the window's size."""
        begin = self._at - self._window_start
        if begin < 0 or begin + length > len(self._window):
            self._load(length)
            begin = 0
        self._at += length
        return self._window[begin : begin + length]

    def _load(self, length: int) -> None:
        """Move the window to where the parser stands; at least `length` bytes must be there."""
        if self._at + length > self._size:
            raise self._bad("ends inside its header (a partial download?)", self._at)
        self._handle.seek(self._at)
        self._window, self._window_start = self._handle.read(_WINDOW_BYTES), self._at
        if len(self._window) < length:
            raise self._bad("ends inside its header (a partial download?)", self._at)

    def _bad(self, what: str, at: int) -> BadModelFile:
        return BadModelFile(f"{self._path.name}: {what} (at byte {at})")
