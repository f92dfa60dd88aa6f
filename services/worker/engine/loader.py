"""Loads stages on libllama for the worker's stage pool."""

from collections.abc import Callable

from services.worker.engine.base import StageSpec
from services.worker.engine.llama_engine import LlamaEngine, read_cpu_name
from services.worker.engine.self_test import SelfTestCache
from services.worker.ports import EngineLoader, LoadedEngine, StageFile
from shared.contracts.messages import StageRef
from shared.llama.library import Library


class LlamaLoader(EngineLoader):
    def __init__(
        self, library: Library, *, self_tests: SelfTestCache, n_threads: int, now: Callable[[], float]
    ) -> None:
        """`n_threads`: for the self-test; sessions say how many they use."""
        self._library = library
        self._self_tests = self_tests
        self._n_threads = n_threads
        self._now = now

    def load(self, ref: StageRef, file: StageFile, *, n_slots: int, ctx_per_slot: int) -> LoadedEngine:
        engine = LlamaEngine(self._library, now=self._now, self_test_cache=self._self_tests, cpu_name=read_cpu_name())
        info = engine.load(
            StageSpec(
                path=file.path,
                stage_digest=file.stage_digest,
                is_first_stage=ref.layers.start == 0,
                is_last_stage=ref.layers.end == ref.num_layers,
                layer_start=ref.layers.start,
                layer_end=ref.layers.end,
                n_slots=n_slots,
                ctx_per_slot=ctx_per_slot,
                n_threads=self._n_threads,
            )
        )
        return LoadedEngine(
            engine=engine,
            n_embd=info.n_embd,
            n_vocab=info.n_vocab,
            numerics_class=info.numerics_class,
            profile=info.profile,
            small_rows=info.small_rows,
            self_test_digest=info.self_test_digest,
            kv_bytes_per_row=info.kv_bytes_per_row,
        )
