"""Loads stages on libllama for the worker's stage pool."""

from collections.abc import Callable
from pathlib import Path

from services.worker.engine import trial_stage
from services.worker.engine.base import StageSpec
from services.worker.engine.llama_engine import LlamaEngine, read_cpu_name
from services.worker.engine.self_test import SelfTestCache, SelfTestResult
from services.worker.ports import EngineLoader, LoadedEngine, StageFile, TrialStage
from shared.contracts.messages import StageRef
from shared.domain.numerics import Profile
from shared.llama.library import Library

TRIAL_SLOTS = 16
TRIAL_ROWS = 256


class LlamaLoader(EngineLoader):
    def __init__(
        self, library: Library, *, folder: Path, self_tests: SelfTestCache, n_threads: int, now: Callable[[], float]
    ) -> None:
        """`folder`: for the stage of trials. `n_threads`: for the self-test; sessions say how many they use."""
        self._library = library
        self._folder = folder
        self._self_tests = self_tests
        self._n_threads = n_threads
        self._now = now

    def load(self, ref: StageRef, file: StageFile, *, n_slots: int, ctx_per_slot: int) -> LoadedEngine:
        engine = self._engine(self._self_tests)
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

    def load_trial(self) -> TrialStage:
        engine = self._engine(_Untested())
        info = engine.load(
            StageSpec(
                path=trial_stage.trial_stage_file(self._folder),
                stage_digest="",
                is_first_stage=False,
                is_last_stage=False,
                layer_start=1,
                layer_end=1 + trial_stage.N_LAYERS,
                n_slots=TRIAL_SLOTS,
                ctx_per_slot=TRIAL_ROWS,
                n_threads=self._n_threads,
            )
        )
        return TrialStage(engine, info.n_embd, TRIAL_SLOTS, trial_stage.layer_bytes())

    def _engine(self, self_tests: SelfTestCache) -> LlamaEngine:
        return LlamaEngine(self._library, now=self._now, self_test_cache=self_tests, cpu_name=read_cpu_name())


class _Untested(SelfTestCache):
    """A stage that computes nothing for anybody promises nothing, so no test is worth its time."""

    def get(self, key: str) -> SelfTestResult:
        return SelfTestResult(Profile.TOLERANT, 1, "")

    def put(self, key: str, result: SelfTestResult) -> None:
        pass
