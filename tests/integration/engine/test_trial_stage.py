"""The stage that nodes are compared by, in the real library."""

from pathlib import Path

import numpy as np
import pytest

from services.worker.engine.loader import TRIAL_SLOTS, LlamaLoader
from services.worker.engine.self_test import FileSelfTestCache
from services.worker.engine.trial_stage import N_EMBD, N_LAYERS, layer_bytes, trial_stage_file
from services.worker.ports import StageFile
from services.worker.service.engine_thread import EngineThread
from services.worker.service.trials import Trials
from shared.contracts.messages import StageRef
from shared.domain.ids import ModelId
from shared.domain.measured import check_pace
from shared.domain.plan import LayerRange
from shared.llama.gguf import read_gguf
from shared.llama.library import load_library
from shared.runtime.clock import SystemClock
from tests.fakes.tiny_models import write_tiny_model


@pytest.fixture
def loader(tmp_path: Path) -> LlamaLoader:
    cache = FileSelfTestCache(tmp_path)
    return LlamaLoader(load_library(), folder=tmp_path, self_tests=cache, n_threads=1, now=SystemClock().now_s)


def test_the_file_is_the_same_everywhere_and_written_once(tmp_path: Path) -> None:
    (first := tmp_path / "a").mkdir()
    (second := tmp_path / "b").mkdir()
    path = trial_stage_file(first)
    assert path.read_bytes() == trial_stage_file(second).read_bytes()
    written_at = path.stat().st_mtime_ns
    assert trial_stage_file(first).stat().st_mtime_ns == written_at
    assert [file.name for file in first.iterdir()] == [path.name]


def test_a_file_that_is_not_whole_is_written_again(tmp_path: Path) -> None:
    path = trial_stage_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert trial_stage_file(tmp_path).read_bytes() == whole


def test_a_layer_byte_is_a_byte_of_its_layers(tmp_path: Path) -> None:
    gguf = read_gguf(trial_stage_file(tmp_path))
    sizes = [tensor.size_bytes for name, tensor in gguf.tensors.items() if name.startswith("blk.")]
    assert layer_bytes() == sum(sizes)
    assert gguf.integer("llama.block_count") == N_LAYERS


def test_rows_stay_finite_through_its_layers(loader: LlamaLoader) -> None:
    stage = loader.load_trial()
    assert (stage.n_embd, stage.n_slots) == (N_EMBD, TRIAL_SLOTS)
    rows = np.full((TRIAL_SLOTS, N_EMBD), 8.0, np.float32)
    slots = np.arange(TRIAL_SLOTS, dtype=np.int32)
    for position in range(3):
        rows = stage.engine.forward(rows, slots, np.full(TRIAL_SLOTS, position, np.int32))
    assert np.isfinite(rows).all()
    stage.engine.close()


async def test_this_machine_has_a_pace(loader: LlamaLoader) -> None:
    trials = Trials(
        loader=loader,
        thread=EngineThread(),
        cores=1,
        rows_per_slot=256,
        is_busy=lambda: False,
        clock=SystemClock(),
    )
    pace = await trials.pace()
    check_pace(pace)
    assert 0 < pace.prefill_s_per_byte < pace.decode_s_per_byte < 1e-8  # a hundred megabytes per second at the least


def test_stages_of_models_load_beside_it(loader: LlamaLoader, tmp_path: Path) -> None:
    """Its file lies in the folder of stages, and its self-test is none: neither may count for a model's."""
    trial = loader.load_trial()
    path = write_tiny_model(tmp_path / "tiny.gguf")
    ref = StageRef(model_id=ModelId("tiny"), model_root="", layers=LayerRange(0, 6), num_layers=6)
    loaded = loader.load(ref, StageFile(path, "whole", 0), n_slots=2, ctx_per_slot=64)
    assert loaded.self_test_digest
    loaded.engine.close()
    trial.engine.close()
