"""One stage file in libllama: its weights (`LlamaModel`) and the sequences that run over them (`LlamaSlots`)."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.worker.domain.batch import BatchLimits, Order, check_places, check_rows, check_wanted
from services.worker.engine.base import EngineSettings, Ids, KvType, Mask, Rows
from services.worker.engine.hidden_capture import HiddenCapture
from shared.domain.errors import (
    AbiMismatch,
    BadBatch,
    BadBlob,
    BadSlot,
    EngineFault,
    NoSlotSpace,
    OutOfMemory,
    UnsupportedModel,
)
from shared.llama.library import GGML_TYPE_F16, GGML_TYPE_Q8_0, LOAD_MODE_READ, Library

MAX_ROWS = 512
"""Rows of one call, the library's default `n_ubatch`: a longer call would come back in pieces."""
_BATCH_CAPACITY = 2048
_Q8_0_BLOCK = 32  # values that share a scale; a head must be a multiple
_ROWS_PER_SLOT_STEP = 256  # the library rounds a slot up to this
_GGML_TYPES = {KvType.Q8_0: GGML_TYPE_Q8_0, KvType.F16: GGML_TYPE_F16}
_BYTES_PER_VALUE = {KvType.Q8_0: 34 / 32, KvType.F16: 2.0}
_NO_KV_SPACE = 1  # llama_decode's answer when the cache is full

EXACT_SETTINGS = EngineSettings()
FALLBACK_SETTINGS = EngineSettings(flash_attention=False, kv_type=KvType.F16)


class LlamaModel:
    """The weights of a stage file."""

    def __init__(self, library: Library, path: Path) -> None:
        """Raises `UnsupportedModel`, `OutOfMemory`."""
        self.library = library
        api = library.api
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = True  # weights are repacked at load: part of the numerics class
        params.load_mode = LOAD_MODE_READ  # into memory that may have huge pages, which a mapped file has not
        self.pointer: int | None = api.llama_model_load_from_file(str(path).encode(), params)
        if not self.pointer:
            raise _load_error(library, f"{path.name} cannot be loaded")
        self.n_embd: int = api.llama_model_n_embd(self.pointer)
        self.n_layer: int = api.llama_model_n_layer(self.pointer)
        self.n_vocab: int = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.pointer))

    def default_settings(self) -> EngineSettings:
        """The exact settings, where the size of the heads allows them."""
        return EXACT_SETTINGS if all(size % _Q8_0_BLOCK == 0 for size in self._head_sizes()) else FALLBACK_SETTINGS

    def kv_bytes_per_row(self, settings: EngineSettings) -> int:
        heads: int = self.library.api.llama_model_n_head_kv(self.pointer)
        values = heads * sum(self._head_sizes()) * self.n_layer
        return int(values * _BYTES_PER_VALUE[settings.kv_type])

    def close(self) -> None:
        if self.pointer:
            self.library.api.llama_model_free(self.pointer)
            self.pointer = None

    def _head_sizes(self) -> tuple[int, int]:
        """Of keys and of values."""
        api = self.library.api
        derived = self.n_embd // max(1, api.llama_model_n_head(self.pointer))
        architecture = self._key_value("general.architecture")
        key = self._key_value(f"{architecture}.attention.key_length")
        value = self._key_value(f"{architecture}.attention.value_length")
        return int(key or derived), int(value or derived)

    def _key_value(self, key: str) -> str:
        """A key-value of the file as text; empty when absent."""
        buffer = ctypes.create_string_buffer(128)
        length: int = self.library.api.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if length > 0 else ""


@dataclass(frozen=True, slots=True)
class SlotsSpec:
    is_first_stage: bool
    is_last_stage: bool
    n_slots: int
    ctx_per_slot: int
    n_threads: int
    settings: EngineSettings


class LlamaSlots:
    """Sequences over a model, one per slot: the calls of `Engine` that touch rows, with their contract."""

    def __init__(self, model: LlamaModel, spec: SlotsSpec) -> None:
        """Raises `OutOfMemory`, `UnsupportedModel`."""
        self._model = model
        self._api = model.library.api
        self._is_last_stage = spec.is_last_stage
        self._limits = BatchLimits(
            takes_ids=spec.is_first_stage,
            n_embd=model.n_embd,
            n_vocab=model.n_vocab,
            n_slots=spec.n_slots,
            ctx_per_slot=spec.ctx_per_slot,
            max_rows=MAX_ROWS,
        )
        self._capture = None if spec.is_last_stage else HiddenCapture(model.library, model.n_layer, model.n_embd)
        self._lengths = np.zeros(spec.n_slots, np.int32)
        self._context: int | None = self._api.llama_init_from_model(model.pointer, self._context_params(spec))
        if not self._context:
            raise _load_error(model.library, f"no context of {spec.n_slots} slots of {spec.ctx_per_slot} rows")
        self._memory: int = self._api.llama_get_memory(self._context)
        if not self._memory:
            self.close()
            raise UnsupportedModel("the model has no KV cache")
        self._make_batch(model.library)

    def forward(self, x: Ids | Rows, slots: Ids, positions: Ids, want: Mask | None = None) -> Rows:
        n = check_rows(x, self._limits)
        order = check_places(slots, positions, n, self._lengths, self._limits)
        check_wanted(want, n, is_last_stage=self._is_last_stage)
        if order is not None:
            x, slots, positions = x[order], slots[order], positions[order]
            want = None if want is None else want[order]
        self._fill_batch(x, slots, positions, want)
        try:
            rows = self._run_hidden(self._capture, n) if self._capture else self._run_logits(n, want)
            if not np.isfinite(rows).all():
                raise BadBatch("the rows lead to values that are not finite")
        except Exception:
            self._roll_back(slots)
            raise
        self._lengths[slots] = positions + 1  # of a chunk's rows the last one counts
        return rows if order is None else _in_given_order(rows, order, want)

    def truncate(self, slot: int, n_rows: int) -> None:
        length = self.length(slot)
        if not 0 <= n_rows <= length:
            raise BadSlot(f"slot {slot} holds {length} rows, not {n_rows}")
        if n_rows < length:
            self._cut(slot, n_rows)
            self._lengths[slot] = n_rows

    def drop(self, slot: int) -> None:
        self.truncate(slot, 0)

    def length(self, slot: int) -> int:
        """Rows a slot holds. Raises `BadSlot` when there is no such slot."""
        if not 0 <= slot < len(self._lengths):
            raise BadSlot(f"there is no slot {slot}: the stage has {len(self._lengths)}")
        return int(self._lengths[slot])

    def read_state(self, slot: int) -> bytes:
        """The library's own form of a slot's sequence."""
        self.length(slot)
        size: int = self._api.llama_state_seq_get_size(self._context, slot)
        buffer = ctypes.create_string_buffer(size)
        written: int = self._api.llama_state_seq_get_data(self._context, buffer, size, slot)
        return buffer.raw[:written]

    def write_state(self, slot: int, state: bytes, n_rows: int) -> None:
        """Fill an empty slot from `read_state`. Raises `BadSlot`, `NoSlotSpace`, `BadBlob`."""
        if self.length(slot):
            raise BadSlot(f"slot {slot} is not empty")
        if n_rows > self._limits.ctx_per_slot:
            raise NoSlotSpace(f"a slot holds {self._limits.ctx_per_slot} rows, not {n_rows}")
        read: int = self._api.llama_state_seq_set_data(self._context, state, len(state), slot)
        found: int = self._api.llama_memory_seq_pos_max(self._memory, slot) + 1
        if read != len(state) or found != n_rows:
            self._cut(slot, 0)
            raise BadBlob(f"the state does not hold the {n_rows} rows it names")
        self._lengths[slot] = n_rows

    def set_threads(self, n_threads: int) -> None:
        self._api.llama_set_n_threads(self._context, n_threads, n_threads)

    def close(self) -> None:
        if self._context:
            self._api.llama_free(self._context)
            self._context = None

    def _context_params(self, spec: SlotsSpec) -> ctypes.Structure:
        params: ctypes.Structure = self._api.llama_context_default_params()
        rows_per_slot = -(-spec.ctx_per_slot // _ROWS_PER_SLOT_STEP) * _ROWS_PER_SLOT_STEP
        kv_type = _GGML_TYPES[spec.settings.kv_type]
        values = {
            "n_ctx": spec.n_slots * rows_per_slot,
            "n_batch": _BATCH_CAPACITY,
            "n_ubatch": MAX_ROWS,
            "n_seq_max": spec.n_slots,
            "n_threads": spec.n_threads,
            "n_threads_batch": spec.n_threads,
            "flash_attn_type": int(spec.settings.flash_attention),
            "type_k": kv_type,
            "type_v": kv_type,
            "kv_unified": False,
            "no_perf": True,
        }
        if self._capture:
            values["cb_eval"] = ctypes.cast(self._capture.callback, ctypes.c_void_p).value or 0
        for name, value in values.items():
            setattr(params, name, value)
        return params

    def _make_batch(self, library: Library) -> None:
        """Arrays that every call fills again; the library reads them through the pointers of the batch."""
        self._slot_of_row = np.zeros(MAX_ROWS, np.int32)
        self._position_of_row = np.zeros(MAX_ROWS, np.int32)
        self._is_wanted = np.zeros(MAX_ROWS, np.int8)
        self._one_slot_each = np.ones(MAX_ROWS, np.int32)
        self._slot_pointers = (self._slot_of_row.ctypes.data + 4 * np.arange(MAX_ROWS)).astype(np.uint64)
        self._batch = library.layout.batch(
            pos=self._position_of_row.ctypes.data,
            n_seq_id=self._one_slot_each.ctypes.data,
            seq_id=self._slot_pointers.ctypes.data,
            logits=self._is_wanted.ctypes.data,
        )

    def _fill_batch(self, x: Ids | Rows, slots: Ids, positions: Ids, want: Mask | None) -> None:
        n = len(x)
        self._x = x  # the library reads it during the call
        self._slot_of_row[:n] = slots
        self._position_of_row[:n] = positions
        # A stage that is not the last wants every row: the last layer would drop the others.
        self._is_wanted[:n] = 1 if want is None else want
        self._batch.n_tokens = n
        self._batch.token = x.ctypes.data if self._limits.takes_ids else None
        self._batch.embd = None if self._limits.takes_ids else x.ctypes.data

    def _run_hidden(self, capture: HiddenCapture, n: int) -> Rows:
        rows = np.empty((n, self._model.n_embd), np.float32)
        for search in (False, True):
            capture.start(rows, search=search)
            self._decode()
            if capture.layout_is_wrong:
                raise AbiMismatch("a tensor's name is not where this layout expects it")
            if capture.rows == n:
                return rows
            self._roll_back(self._slot_of_row[:n])
        raise UnsupportedModel(f"the model's graph has no hidden state {capture.target} of {n} rows")

    def _run_logits(self, n: int, want: Mask | None) -> Rows:
        self._decode()
        n_wanted = n if want is None else int(np.count_nonzero(want))
        logits = np.empty((n_wanted, self._model.n_vocab), np.float32)
        if n_wanted:
            ctypes.memmove(logits.ctypes.data, self._api.llama_get_logits(self._context), logits.nbytes)
        return logits

    def _decode(self) -> None:
        status: int = self._api.llama_decode(self._context, self._batch)
        if status == _NO_KV_SPACE:
            raise NoSlotSpace("the library found no room in the KV cache")
        if status:
            raise EngineFault(f"llama_decode failed with {status}: {self._model.library.last_log_lines(2)}")

    def _roll_back(self, slots: Ids) -> None:
        for slot in np.unique(slots):
            self._cut(int(slot), int(self._lengths[slot]))

    def _cut(self, slot: int, n_rows: int) -> None:
        if not self._api.llama_memory_seq_rm(self._memory, slot, n_rows, -1):
            raise EngineFault(f"the library cannot cut slot {slot} back to {n_rows} rows")


def _in_given_order(rows: Rows, order: Order, want: Mask | None) -> Rows:
    """Undo the sort by slot. `want` is in sorted order; only wanted rows are in `rows`."""
    places = order if want is None else order[want]
    return rows[np.argsort(places)]


def _load_error(library: Library, what: str) -> OutOfMemory | UnsupportedModel:
    said = library.last_log_lines()
    kind = OutOfMemory if "allocate" in said else UnsupportedModel
    return kind(f"{what}: {said}")
