"""The models are the GGUF files of one folder; a model's id is its file's name without the ending."""

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from services.partitioner.ports import ModelStore, Refused
from services.partitioner.stores.digest_file import load_digests, save_digests
from services.partitioner.stores.model_info import describe
from shared.domain.errors import BadModelFile, ModelNotFound
from shared.domain.ids import ModelId
from shared.domain.layers import ModelInfo
from shared.llama.cutting import ModelFile, StageFile, cut_stage, open_model, vocabulary_file
from shared.llama.token_table import token_bytes

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_CUTS = 256
"""Recipes of stage files kept per model; each is some kilobytes."""


@dataclass(slots=True)
class _Entry:
    model: ModelFile
    info: ModelInfo | None = None
    """None until the digests are known."""
    cuts: OrderedDict[tuple[int, int], StageFile] = field(default_factory=OrderedDict)
    vocabulary: StageFile | None = None
    table: bytes | None = None


class ModelFolder(ModelStore):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[ModelId, _Entry] = {}
        self._bad: dict[str, tuple[_Stamp, str]] = {}

    def scan(self) -> None:
        entries: dict[ModelId, _Entry] = {}
        bad: dict[str, tuple[_Stamp, str]] = {}
        for path in sorted(self._folder.glob("*.gguf")):
            stamp = _stamp(path)
            if stamp is None:
                continue  # removed since it was listed
            known = self._entries.get(ModelId(path.stem))
            refused = self._bad.get(path.name)
            if known is not None and _stamp_of(known) == stamp:
                entries[ModelId(path.stem)] = known
            elif refused is not None and refused[0] == stamp:
                bad[path.name] = refused
            else:
                try:
                    entries[ModelId(path.stem)] = _open(path)
                except BadModelFile as error:
                    bad[path.name] = (stamp, error.message)
        self._entries, self._bad = entries, bad

    def is_current(self, model_id: ModelId) -> bool:
        entry = self._entries.get(model_id)
        return entry is not None and _stamp(entry.model.path) == _stamp_of(entry)

    def models(self) -> tuple[ModelInfo, ...]:
        known = [entry.info for entry in self._entries.values() if entry.info is not None]
        return tuple(sorted(known, key=lambda info: info.model_id))

    def refused(self) -> tuple[Refused, ...]:
        return tuple(Refused(file, reason) for file, (_, reason) in sorted(self._bad.items()))

    def pending(self) -> tuple[ModelId, ...]:
        return tuple(model_id for model_id, entry in self._entries.items() if entry.info is None)

    def complete(self, model_id: ModelId) -> None:
        entry = self._entry(model_id)
        digests = {name: entry.model.tensor_digest(name) for name in entry.model.gguf.tensors}
        save_digests(entry.model.gguf, digests)
        entry.info = describe(model_id, entry.model, entry.model.root())

    def model(self, model_id: ModelId) -> ModelInfo | None:
        entry = self._entries.get(model_id)
        return entry.info if entry else None

    def stage(self, model_id: ModelId, start: int, end: int) -> StageFile:
        entry = self._entry(model_id)
        cut = entry.cuts.get((start, end))
        if cut is None:
            cut = cut_stage(entry.model, start, end)
            cut.stage_digest()
            entry.cuts[start, end] = cut
            if len(entry.cuts) > _MAX_CUTS:
                entry.cuts.popitem(last=False)
        return cut

    def vocabulary(self, model_id: ModelId) -> StageFile:
        entry = self._entry(model_id)
        if entry.vocabulary is None:
            entry.vocabulary = vocabulary_file(entry.model)
            entry.vocabulary.stage_digest()
        return entry.vocabulary

    def token_table(self, model_id: ModelId) -> bytes:
        entry = self._entry(model_id)
        if entry.table is None:
            entry.table = token_bytes(entry.model)
        return entry.table

    def _entry(self, model_id: ModelId) -> _Entry:
        entry = self._entries.get(model_id)
        if entry is None:
            raise ModelNotFound(f"there is no model {model_id!r}")
        return entry


_Stamp = tuple[int, int]
"""Size and time of a file: another stamp is another content."""


def _open(path: Path) -> _Entry:
    if not _ID.fullmatch(path.stem):
        raise BadModelFile(f"{path.name}: a model's id is made of letters, digits, '.', '_' and '-': rename the file")
    model = open_model(path)
    entry = _Entry(model)
    describe(ModelId(path.stem), model, root="")  # impossible figures are found before the hashing
    digests = load_digests(model.gguf)
    if digests is not None:
        model.remember(digests)
        entry.info = describe(ModelId(path.stem), model, model.root())
    return entry


def _stamp_of(entry: _Entry) -> _Stamp:
    return entry.model.gguf.size_bytes, entry.model.gguf.mtime_ns


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
