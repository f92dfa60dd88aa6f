"""Cuts a model into stage files, without writing any: a stage is a list of slices of the model file and new bytes.

For layers [start, end) of n (`docs` of the engine give the reasons):
    part                 first stage         middle                    last stage
    token_embd.weight    real                zeros [n_embd, 32] f16    the head, under this name (llama.cpp ties it)
    output_norm.weight   ones                ones                      real
    tokenizer keys       kept                model = "no_vocab"        model = "no_vocab"
    <arch>.vocab_size    real                32                        rows of the head
    blk.i.*              those in [start, end), raw bytes, renamed to start at 0
    <arch>.block_count   end - start
    per-layer arrays     sliced; a sliding-window pattern becomes such an array
    all else             copied
A cut of all layers is the model file itself.
"""

import os
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path

from shared.domain.errors import BadModelFile, InvalidInput, UnsupportedModel
from shared.llama.families import ADMITTED, refusal
from shared.llama.gguf import (
    SCALARS,
    TENSOR_TYPES,
    GgufFile,
    KeyValue,
    TensorInfo,
    TensorType,
    ValueType,
    padding,
    read_gguf,
)
from shared.llama.gguf_writing import array_entry, preamble, string_entry, tensor_entry, uint32_entry

DUMMY_VOCAB = 32
CHUNK_BYTES = 512 << 10
_DIGEST_BYTES = 32
_STAGE_PERSON = b"bfly/stage/1"
_MODEL_PERSON = b"bfly/model/1"
_MAX_LAYERS = 1_024
_MAX_WIDTH = 1 << 20
_MAX_VOCAB = 1 << 24
_F32, _F16 = TENSOR_TYPES[0], TENSOR_TYPES[1]
_LAYER_TENSOR = re.compile(r"blk\.(\d{1,6})\.(.+)")


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes [start, stop) of the model file."""

    start: int
    stop: int


Segment = bytes | Slice


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a model may be cut, and if not, by which rule."""

    splittable: bool
    reason: str


class ModelFile:
    """A whole model in one GGUF file, checked to have what serving needs. `open_model` makes it.

    Digests of tensors are computed when first asked for and kept; `digests` brings those known from before.
    Methods that read the file raise `BadModelFile` when it has changed. Calls may overlap.
    """

    def __init__(
        self, gguf: GgufFile, *, architecture: str, num_layers: int, n_embd: int, n_vocab: int, context_tokens: int
    ) -> None:
        self.gguf = gguf
        self.architecture = architecture
        self.num_layers = num_layers
        self.n_embd = n_embd
        self.n_vocab = n_vocab
        self.context_tokens = context_tokens
        self._digests: dict[str, bytes] = {}

    @property
    def path(self) -> Path:
        return self.gguf.path

    @property
    def has_chat_template(self) -> bool:
        return "tokenizer.chat_template" in self.gguf.keys

    @property
    def head(self) -> TensorInfo:
        """The output matrix: the embedding itself in a tied model."""
        return self.gguf.tensors.get("output.weight", self.gguf.tensors["token_embd.weight"])

    def arch_integer(self, suffix: str) -> int | None:
        """The integer key `<architecture>.<suffix>`, None when absent."""
        return self.gguf.integer(f"{self.architecture}.{suffix}")

    def tensor_digest(self, name: str) -> bytes:
        """BLAKE2b-256 of the tensor's raw bytes."""
        known = self._digests.get(name)
        if known is None:
            tensor = self.gguf.tensors[name]
            known = _digest_of(_file_chunks(self.gguf, tensor.start, tensor.start + tensor.size_bytes))
            self._digests[name] = known
        return known

    def remember(self, digests: Mapping[str, bytes]) -> None:
        """Take tensor digests computed earlier from the same bytes."""
        self._digests |= digests

    def root(self) -> str:
        """Hex digest over header and tensors: names the content of the whole model. Reads the file once."""
        header = _digest_of(_file_chunks(self.gguf, 0, self.gguf.data_start))
        return _combine(_MODEL_PERSON, header, (self.tensor_digest(name) for name in self.gguf.tensors))


@dataclass(frozen=True, slots=True)
class _StageTensor:
    """One tensor of a stage file. `content` is new bytes, or the tensor of the model whose bytes it takes."""

    name: str
    shape: tuple[int, ...]
    tensor_type: TensorType
    content: bytes | TensorInfo

    @property
    def size_bytes(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.size_bytes

    @property
    def segment(self) -> Segment:
        if isinstance(self.content, bytes):
            return self.content
        return Slice(self.content.start, self.content.start + self.content.size_bytes)


class StageFile:
    """A GGUF file that exists as a recipe: reading it reads the model file. Reads may overlap."""

    def __init__(
        self, model: ModelFile, segments: Iterable[Segment], header_bytes: int, tensors: Iterable[_StageTensor]
    ) -> None:
        self._model = model
        self._segments = tuple(segments)
        self._ends = tuple(accumulate(_length(segment) for segment in self._segments))
        self._tensors = tuple(tensors)
        self._digest: str | None = None
        self.header_bytes = header_bytes
        """Bytes before the first tensor."""
        self.size_bytes = self._ends[-1]

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop) in chunks of at most `CHUNK_BYTES`. Blocks on the disk.

        Raises `BadModelFile` when the model file changed, `ValueError` for a range outside the file.
        """
        if not 0 <= start <= stop <= self.size_bytes:
            raise ValueError(f"no bytes {start}-{stop} in a file of {self.size_bytes}")
        at = start
        for index in range(bisect_right(self._ends, start), len(self._segments)):
            if at >= stop:
                return
            segment, begin = self._segments[index], self._ends[index] - _length(self._segments[index])
            first, last = at - begin, min(stop, self._ends[index]) - begin
            if isinstance(segment, Slice):
                yield from _file_chunks(self._model.gguf, segment.start + first, segment.start + last)
            else:
                yield segment[first:last]
            at = begin + last

    def stage_digest(self) -> str:
        """Hex digest of header and tensors: what a worker checks after fetching. Computed once."""
        if self._digest is None:
            header = _digest_of(self.read(0, self.header_bytes))
            self._digest = _combine(_STAGE_PERSON, header, (self._tensor_digest(tensor) for tensor in self._tensors))
        return self._digest

    def write_to(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as handle:
            for chunk in self.read(0, self.size_bytes):
                handle.write(chunk)
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(path)

    def _tensor_digest(self, tensor: _StageTensor) -> bytes:
        if isinstance(tensor.content, bytes):
            return _digest_of([tensor.content])
        return self._model.tensor_digest(tensor.content.name)


def open_model(path: Path) -> ModelFile:
    """Read the header of a model and check what serving needs of it.

    Raises `BadModelFile` naming what is wrong: no GGUF, truncated, one part of several, an adapter, or parts missing.
    """
    gguf = read_gguf(path)
    _check_kind(gguf)
    architecture = gguf.text("general.architecture") or ""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", architecture):
        raise _bad(gguf, f"general.architecture is {architecture[:64]!r}: no model family")
    num_layers = _required(gguf, f"{architecture}.block_count", _MAX_LAYERS)
    n_embd = _required(gguf, f"{architecture}.embedding_length", _MAX_WIDTH)
    context_tokens = _required(gguf, f"{architecture}.context_length", 1 << 31)
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise _bad(gguf, "there is no matrix token_embd.weight")
    n_vocab = embedding.shape[1]
    if embedding.shape[0] != n_embd or n_vocab > _MAX_VOCAB:
        raise _bad(gguf, f"token_embd.weight has the shape {embedding.shape} in a model of width {n_embd}")
    tokens = gguf.keys.get("tokenizer.ggml.tokens")
    if tokens is not None and tokens.count != n_vocab:
        raise _bad(gguf, f"the tokenizer has {tokens.count} tokens, the embedding {n_vocab} rows")
    model = ModelFile(
        gguf,
        architecture=architecture,
        num_layers=num_layers,
        n_embd=n_embd,
        n_vocab=n_vocab,
        context_tokens=context_tokens,
    )
    if admission_of(model).splittable:
        _check_chain(model)
    return model


def admission_of(model: ModelFile) -> Admission:
    """Whether the model's family may be cut into stages."""
    reason = refusal(model.architecture, model.num_layers, model.arch_integer("expert_count") or 0)
    return Admission(splittable=reason is None, reason=reason or "")


def layer_of(tensor_name: str) -> int | None:
    """The number of the layer a tensor belongs to, None for those outside the layers."""
    found = _LAYER_TENSOR.fullmatch(tensor_name)
    return int(found[1]) if found else None


def cut_stage(model: ModelFile, start: int, end: int) -> StageFile:
    """The stage file for layers [start, end). Reads small keys only.

    Raises `InvalidInput` for a range the model does not have, `UnsupportedModel` naming the rule when its family may
    not be cut.
    """
    if not 0 <= start < end <= model.num_layers:
        raise InvalidInput(f"layers {start}-{end} are no range of the {model.num_layers} layers", param="layers")
    gguf = model.gguf
    if (start, end) == (0, model.num_layers):
        whole = [_StageTensor(name, tensor.shape, tensor.tensor_type, tensor) for name, tensor in gguf.tensors.items()]
        return StageFile(model, [Slice(0, gguf.size_bytes)], gguf.data_start, whole)
    admission = admission_of(model)
    if not admission.splittable:
        raise UnsupportedModel(admission.reason)
    return _assemble(model, _stage_keys(model, start, end), _stage_tensors(model, start, end))


def vocabulary_file(model: ModelFile) -> StageFile:
    """All keys of the model and no tensors: enough to load its vocabulary."""
    return _assemble(model, [Slice(key.entry_start, key.stop) for key in model.gguf.keys.values()], [])


def stage_digest_of(path: Path) -> str:
    """The stage digest of a file on disk, read once. Raises `BadModelFile` when it is no sound GGUF file."""
    gguf = read_gguf(path)
    header = _digest_of(_file_chunks(gguf, 0, gguf.data_start))
    tensors = gguf.tensors.values()
    return _combine(
        _STAGE_PERSON, header, (_digest_of(_file_chunks(gguf, t.start, t.start + t.size_bytes)) for t in tensors)
    )


def _check_kind(gguf: GgufFile) -> None:
    if (gguf.integer("split.count") or 1) > 1:
        raise _bad(gguf, "it is one part of a model in several files: merge them first")
    kind = gguf.text("general.type") or "model"
    if kind != "model":
        raise _bad(gguf, f"it is of the kind {kind[:64]!r}, not a model")


def _check_chain(model: ModelFile) -> None:
    """A model that is to be cut must have every layer and a final norm."""
    layers = {layer_of(name) for name in model.gguf.tensors} - {None}
    missing = set(range(model.num_layers)) - layers
    if missing or len(layers) != model.num_layers:
        raise _bad(model.gguf, f"it has tensors of {len(layers)} layers, but names {model.num_layers}")
    norm = model.gguf.tensors.get("output_norm.weight")
    if norm is None or norm.shape != (model.n_embd,):
        raise _bad(model.gguf, "there is no output_norm.weight of the model's width")
    if model.head.shape != (model.n_embd, model.n_vocab):
        raise _bad(model.gguf, f"output.weight has the shape {model.head.shape}")


def _required(gguf: GgufFile, name: str, limit: int) -> int:
    found = gguf.integer(name)
    if found is None:
        raise _bad(gguf, f"the key {name} is missing")
    if not 1 <= found <= limit:
        raise _bad(gguf, f"{name} is {found}, not 1 to {limit}")
    return found


def _bad(gguf: GgufFile, what: str) -> BadModelFile:
    return BadModelFile(f"{gguf.path.name}: {what}")


def _stage_keys(model: ModelFile, start: int, end: int) -> list[Segment]:
    arch, is_first = model.architecture, start == 0
    changed: dict[str, bytes] = {f"{arch}.block_count": uint32_entry(f"{arch}.block_count", end - start)}
    if not is_first:
        rows = model.head.shape[1] if end == model.num_layers else DUMMY_VOCAB
        changed[f"{arch}.vocab_size"] = uint32_entry(f"{arch}.vocab_size", rows)
        changed["tokenizer.ggml.model"] = string_entry("tokenizer.ggml.model", "no_vocab")
    changed |= _sliding_pattern(model, start, end)
    parts: list[Segment] = []
    for key in model.gguf.keys.values():
        if key.name in changed:
            parts.append(changed.pop(key.name))
        elif key.name.startswith("tokenizer.") and not is_first:
            continue
        elif _is_per_layer(model, key):
            parts.append(_sliced_entry(model.gguf, key, start, end))
        else:
            parts.append(Slice(key.entry_start, key.stop))
    return [*parts, *changed.values()]


def _is_per_layer(model: ModelFile, key: KeyValue) -> bool:
    """Arrays of one item per layer. Those of `rope` have one per dimension section, whatever their length."""
    prefix = f"{model.architecture}."
    is_of_family = key.name.startswith(prefix) and not key.name.startswith(f"{prefix}rope.")
    return is_of_family and key.item_type is not None and key.count == model.num_layers


def _sliding_pattern(model: ModelFile, start: int, end: int) -> dict[str, bytes]:
    """The window pattern of the kept layers as an array: layer numbers change, so a period cannot say it."""
    period = ADMITTED[model.architecture].sliding_period
    window = f"{model.architecture}.attention.sliding_window"
    if period is None or not model.gguf.integer(window):
        return {}
    pattern = f"{window}_pattern"
    given = model.gguf.value(pattern)
    if isinstance(given, list):
        slides = [bool(item) for item in given]
        if len(slides) != model.num_layers:
            raise _bad(model.gguf, f"{pattern} has {len(slides)} items for {model.num_layers} layers")
    else:
        stated = model.gguf.integer(pattern)
        period = period if stated is None else max(0, stated)
        slides = [period == 0 or layer % period < period - 1 for layer in range(model.num_layers)]
    kept = slides[start:end]
    if not any(kept):
        # llama.cpp aborts over an empty cache when there is a window but no layer with one.
        return {window: uint32_entry(window, 0)}
    return {pattern: array_entry(pattern, ValueType.BOOL, end - start, bytes(kept))}


def _sliced_entry(gguf: GgufFile, key: KeyValue, start: int, end: int) -> bytes:
    if key.item_type is ValueType.STRING:
        kept = list(gguf.strings(key.name))[start:end]
        items = b"".join(struct.pack("<Q", len(item)) + item for item in kept)
        return array_entry(key.name, ValueType.STRING, end - start, items)
    item_type = key.item_type or key.value_type
    size = SCALARS[item_type].size
    items = gguf.read(key.items_start + start * size, key.items_start + end * size)
    return array_entry(key.name, item_type, end - start, items)


def _stage_tensors(model: ModelFile, start: int, end: int) -> list[_StageTensor]:
    tensors = []
    for name, tensor in model.gguf.tensors.items():
        layer = layer_of(name)
        if layer is not None:
            if start <= layer < end:
                renamed = f"blk.{layer - start}.{name.split('.', 2)[2]}"
                tensors.append(_StageTensor(renamed, tensor.shape, tensor.tensor_type, tensor))
        elif name == "token_embd.weight":
            tensors.append(_stage_embedding(model, start, end))
        elif name == "output_norm.weight" and end < model.num_layers:
            ones = struct.pack("<f", 1.0) * model.n_embd
            tensors.append(_StageTensor(name, tensor.shape, _F32, ones))
        elif name != "output.weight":
            tensors.append(_StageTensor(name, tensor.shape, tensor.tensor_type, tensor))
    return tensors


def _stage_embedding(model: ModelFile, start: int, end: int) -> _StageTensor:
    if start > 0 and end < model.num_layers:
        zeros = bytes(DUMMY_VOCAB * model.n_embd * _F16.block_bytes)
        return _StageTensor("token_embd.weight", (model.n_embd, DUMMY_VOCAB), _F16, zeros)
    source = model.gguf.tensors["token_embd.weight"] if start == 0 else model.head
    return _StageTensor("token_embd.weight", source.shape, source.tensor_type, source)


def _assemble(model: ModelFile, keys: list[Segment], tensors: list[_StageTensor]) -> StageFile:
    """A file of these keys and tensors, laid out like the model's."""
    alignment = model.gguf.alignment
    places, offset = [], 0
    for tensor in tensors:
        places.append(tensor_entry(tensor.name, tensor.shape, tensor.tensor_type, offset))
        offset += tensor.size_bytes + padding(tensor.size_bytes, alignment)
    start = preamble(model.gguf.version, num_tensors=len(tensors), num_keys=len(keys))
    header: list[Segment] = [start, *keys, b"".join(places)]
    written = sum(_length(segment) for segment in header)
    header.append(bytes(padding(written, alignment)))
    data: list[Segment] = []
    for tensor in tensors:
        data += [tensor.segment, bytes(padding(tensor.size_bytes, alignment))]
    return StageFile(model, _joined([*header, *data]), written + padding(written, alignment), tensors)


def _joined(segments: Iterable[Segment]) -> list[Segment]:
    """The same bytes in fewer segments: neighbours in the model file become one slice, empty ones go."""
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if not _length(segment):
            continue
        if isinstance(segment, Slice) and isinstance(last, Slice) and last.stop == segment.start:
            joined[-1] = Slice(last.start, segment.stop)
        elif isinstance(segment, bytes) and isinstance(last, bytes):
            joined[-1] = last + segment
        else:
            joined.append(segment)
    return joined


def _length(segment: Segment) -> int:
    return segment.stop - segment.start if isinstance(segment, Slice) else len(segment)


def _file_chunks(gguf: GgufFile, start: int, stop: int) -> Iterator[bytes]:
    with gguf.open() as handle:
        handle.seek(start)
        left = stop - start
        while left > 0:
            chunk = handle.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise _bad(gguf, f"ends inside bytes {start}-{stop}")
            left -= len(chunk)
            yield chunk


def _digest_of(chunks: Iterable[bytes]) -> bytes:
    state = blake2b(digest_size=_DIGEST_BYTES)
    for chunk in chunks:
        state.update(chunk)
    return state.digest()


def _combine(person: bytes, header: bytes, tensors: Iterable[bytes]) -> str:
    state = blake2b(header, digest_size=_DIGEST_BYTES, person=person)
    for digest in tensors:
        state.update(digest)
    return state.hexdigest()
