"""A stage of a language model on libllama."""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from services.worker.engine.base import Engine, EngineSettings, Ids, Mask, Rows, StageInfo, StageSpec
from services.worker.engine.llama_stage import LlamaModel, LlamaSlots, SlotsSpec
from services.worker.engine.memory import available_memory_bytes
from services.worker.engine.self_test import (
    N_ROWS,
    N_SLOTS,
    TEST_VERSION,
    SelfTestCache,
    SelfTestResult,
    fixed_ids,
    fixed_rows,
    run_self_test,
)
from services.worker.engine.weights import bounded, matrix_types
from shared.domain.errors import BadBlob, BadSlot, EngineFault, OutOfMemory, UnsupportedModel, WrongClass
from shared.domain.sampler import RULE_VERSION
from shared.llama.library import Library

_BLOB_MAGIC = b"BFKV\x01"
_BLOB_DIGEST_BYTES = 32
_MAX_BLOB_HEADER_BYTES = 4096


class LlamaEngine(Engine):
    def __init__(
        self,
        library: Library,
        *,
        now: Callable[[], float],
        self_test_cache: SelfTestCache | None,
        cpu_name: str,
        available_bytes: Callable[[], int | None] = available_memory_bytes,
    ) -> None:
        """`now`: monotonic seconds. `cpu_name` keeps a cached self-test from being believed on another machine."""
        self._library = library
        self._now = now
        self._cache = self_test_cache
        self._cpu_name = cpu_name
        self._available_bytes = available_bytes
        self._model: LlamaModel | None = None
        self._slots: LlamaSlots | None = None
        self._identity = ("", "")

    def load(self, spec: StageSpec) -> StageInfo:
        self.close()
        started_s = self._now()
        try:
            return self._load(spec, started_s)
        except Exception:
            self.close()
            raise

    def forward(self, x: Ids | Rows, slots: Ids, positions: Ids, want: Mask | None = None) -> Rows:
        return self._loaded().forward(x, slots, positions, want)

    def truncate(self, slot: int, n_rows: int) -> None:
        self._loaded().truncate(slot, n_rows)

    def drop(self, slot: int) -> None:
        self._loaded().drop(slot)

    def copy(self, src: int, dst: int) -> None:
        # Through the state, not llama_memory_seq_cp: that one copies only at the next call, and whole slots.
        slots = self._loaded()
        n_rows = slots.length(src)
        if slots.length(dst):
            raise BadSlot(f"slot {dst} is not empty")
        if n_rows:
            slots.write_state(dst, slots.read_state(src), n_rows)

    def export(self, slot: int) -> bytes:
        slots = self._loaded()
        numerics, stage_digest = self._identity
        fields = {"numerics_class": numerics, "stage_digest": stage_digest, "rows": slots.length(slot)}
        header = json.dumps(fields).encode()
        body = struct.pack("<I", len(header)) + header + slots.read_state(slot)
        return _BLOB_MAGIC + _blob_digest(body) + body

    def import_(self, slot: int, blob: bytes) -> int:
        slots = self._loaded()
        identity, n_rows, state = _read_blob(blob)
        if identity != self._identity:
            raise WrongClass(f"the state is of {identity}, this stage is {self._identity}")
        if slots.length(slot):
            raise BadSlot(f"slot {slot} is not empty")
        if n_rows:
            slots.write_state(slot, state, n_rows)
        return n_rows

    def set_threads(self, n_threads: int) -> None:
        self._loaded().set_threads(n_threads)

    def close(self) -> None:
        if self._slots:
            self._slots.close()
            self._slots = None
        if self._model:
            self._model.close()
            self._model = None

    def _load(self, spec: StageSpec, started_s: float) -> StageInfo:
        model = self._model = LlamaModel(self._library, spec.path)
        if model.n_layer != spec.layer_end - spec.layer_start:
            raise UnsupportedModel(
                f"{spec.path.name} has {model.n_layer} layers, not [{spec.layer_start}, {spec.layer_end})"
            )
        slots_spec = SlotsSpec(
            is_first_stage=spec.is_first_stage,
            is_last_stage=spec.is_last_stage,
            n_slots=spec.n_slots,
            ctx_per_slot=spec.ctx_per_slot,
            n_threads=spec.n_threads,
            settings=spec.settings or model.default_settings(),
        )
        self._check_room(model, slots_spec)
        numerics = numerics_class(self._library, slots_spec.settings)
        found = bounded(
            self._self_test(model, slots_spec, f"{TEST_VERSION} {spec.stage_digest} {numerics} {self._cpu_name}"),
            matrix_types(spec.path, is_last_stage=spec.is_last_stage),
            slots_spec.settings,
        )
        self._slots = LlamaSlots(model, slots_spec)
        self._identity = (numerics, spec.stage_digest)
        return StageInfo(
            n_embd=model.n_embd,
            n_vocab=model.n_vocab if spec.is_first_stage or spec.is_last_stage else None,
            numerics_class=numerics,
            profile=found.profile,
            small_rows=found.small_rows,
            self_test_digest=found.digest,
            kv_bytes_per_row=model.kv_bytes_per_row(slots_spec.settings),
            load_s=self._now() - started_s,
        )

    def _check_room(self, model: LlamaModel, spec: SlotsSpec) -> None:
        needed = model.kv_bytes_per_row(spec.settings) * spec.n_slots * spec.ctx_per_slot
        left = self._available_bytes()
        if left is not None and needed > left:
            raise OutOfMemory(
                f"{spec.n_slots} slots of {spec.ctx_per_slot} rows need {needed} bytes of KV cache, {left} are left"
            )

    def _self_test(self, model: LlamaModel, spec: SlotsSpec, key: str) -> SelfTestResult:
        """Runs in slots of its own, because the stage may have too few, or too short ones."""
        known = self._cache.get(key) if self._cache else None
        if known:
            return known
        slots = LlamaSlots(model, replace(spec, n_slots=N_SLOTS, ctx_per_slot=N_ROWS))
        try:
            x = fixed_ids(model.n_vocab) if spec.is_first_stage else fixed_rows(model.n_embd)
            result = run_self_test(slots, x, is_last_stage=spec.is_last_stage)
        finally:
            slots.close()
        if self._cache:
            self._cache.put(key, result)
        return result

    def _loaded(self) -> LlamaSlots:
        if self._slots is None:
            raise EngineFault("no stage is loaded")
        return self._slots


def numerics_class(library: Library, settings: EngineSettings) -> str:
    """Equal strings, and equal self-test digests, mean equal bits."""
    flash, kv = int(settings.flash_attention), settings.kv_type
    return f"{library.build_class}/fa{flash}/kv={kv},{kv}/unified=0/repack=1/sampler={RULE_VERSION}"


def read_cpu_name() -> str:
    """What the system calls this machine's processor; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _blob_digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_BLOB_DIGEST_BYTES).digest()


def _read_blob(blob: bytes) -> tuple[tuple[str, str], int, bytes]:
    """(numerics class, stage digest), rows, and the library's state. Raises `BadBlob`.

    The digest finds damage, not malice: a blob never comes from another node.
    """
    body = blob[len(_BLOB_MAGIC) + _BLOB_DIGEST_BYTES :]
    if not blob.startswith(_BLOB_MAGIC) or blob[len(_BLOB_MAGIC) :][:_BLOB_DIGEST_BYTES] != _blob_digest(body):
        raise BadBlob("the exported sequence is damaged, or is none")
    try:
        (header_bytes,) = struct.unpack_from("<I", body)
        if header_bytes > _MAX_BLOB_HEADER_BYTES:
            raise BadBlob("the header of the exported sequence is too long")
        fields = json.loads(body[4 : 4 + header_bytes])
        identity = (str(fields["numerics_class"]), str(fields["stage_digest"]))
        return identity, int(fields["rows"]), body[4 + header_bytes :]
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise BadBlob("the header of the exported sequence cannot be read") from error
