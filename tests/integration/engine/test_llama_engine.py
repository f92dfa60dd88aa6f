from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from services.worker.engine.base import EngineSettings, KvType, StageSpec
from services.worker.engine.llama_engine import LlamaEngine
from services.worker.engine.self_test import FileSelfTestCache, SelfTestResult
from shared.domain.errors import (
    BadBatch,
    BadBlob,
    BadSlot,
    EngineFault,
    NoSlotSpace,
    OutOfMemory,
    UnsupportedModel,
    WrongClass,
)
from shared.domain.numerics import Profile
from tests.integration.engine.stages import ints, make_engine, write_stages

N_SLOTS, CTX = 3, 40


def whole_spec(path: Path, **changes: object) -> StageSpec:
    fields: dict[str, object] = {
        "path": path,
        "stage_digest": "d" * 64,
        "is_first_stage": True,
        "is_last_stage": True,
        "layer_start": 0,
        "layer_end": 6,
        "n_slots": N_SLOTS,
        "ctx_per_slot": CTX,
        "n_threads": 1,
    }
    return StageSpec(**(fields | changes))  # type: ignore[arg-type] # fields of several types


@pytest.fixture
def engine(tiny_model: Path) -> Iterator[LlamaEngine]:
    engine = make_engine()
    engine.load(whole_spec(tiny_model))
    yield engine
    engine.close()


@pytest.fixture
def middle(tiny_model: Path, stage_folder: Path) -> Iterator[LlamaEngine]:
    """Layers 2 and 3."""
    engine = make_engine()
    (path,) = write_stages(tiny_model, (2, 4), stage_folder)
    engine.load(whole_spec(path, is_first_stage=False, is_last_stage=False, layer_start=2, layer_end=4))
    yield engine
    engine.close()


def run(engine: LlamaEngine, ids: list[int], slot: int, start: int = 0) -> bytes:
    positions = np.arange(start, start + len(ids), dtype=np.int32)
    return engine.forward(ints(ids), np.full(len(ids), slot, np.int32), positions).tobytes()


def test_a_stage_tells_what_it_is(tiny_model: Path, stage_folder: Path) -> None:
    engine = make_engine()
    (path,) = write_stages(tiny_model, (2, 4), stage_folder)
    spec = whole_spec(path, is_first_stage=False, is_last_stage=False, layer_start=2, layer_end=4)

    info = engine.load(spec)

    assert (info.n_embd, info.n_vocab, info.profile, info.small_rows) == (128, None, Profile.EXACT, None)
    assert info.kv_bytes_per_row == 2 * 2 * 2 * 34  # layers, keys and values, heads, bytes of 32 values
    assert info.numerics_class.endswith("/cpu/fa1/kv=q8_0,q8_0/unified=0/repack=1/sampler=1")
    assert info.load_s > 0
    engine.close()


def test_a_copy_goes_on_like_the_original(engine: LlamaEngine) -> None:
    run(engine, [5, 6, 7, 8], 0)
    engine.copy(0, 2)
    engine.truncate(0, 2)

    copied = run(engine, [9, 10], 2, start=4)
    run(engine, [7, 8], 0, start=2)

    assert run(engine, [9, 10], 0, start=4) == copied


def test_a_sequence_can_leave_and_come_back(engine: LlamaEngine, tiny_model: Path) -> None:
    run(engine, list(range(30)), 0)
    blob = engine.export(0)
    expected = run(engine, [9, 10], 0, start=30)
    other = make_engine()
    other.load(whole_spec(tiny_model))

    assert other.import_(1, blob) == 30
    assert run(other, [9, 10], 1, start=30) == expected
    other.close()


def test_an_empty_slot_can_be_exported(engine: LlamaEngine) -> None:
    assert engine.import_(1, engine.export(0)) == 0
    assert run(engine, [1], 1)


def test_a_sequence_of_another_stage_or_class_is_refused(engine: LlamaEngine, tiny_model: Path) -> None:
    run(engine, [5, 6, 7], 0)
    blob = engine.export(0)
    settings = EngineSettings(flash_attention=False, kv_type=KvType.F16)
    for spec in (whole_spec(tiny_model, stage_digest="e" * 64), whole_spec(tiny_model, settings=settings)):
        other = make_engine()
        other.load(spec)
        with pytest.raises(WrongClass):
            other.import_(0, blob)
        other.close()


def test_a_damaged_export_is_refused_and_leaves_the_slot_empty(engine: LlamaEngine) -> None:
    run(engine, list(range(12)), 0)
    blob = engine.export(0)
    for damaged in (b"", b"BFKV\x01", blob[:-1], blob + b"x", blob[:200] + b"\0" + blob[201:], b"X" + blob[1:]):
        with pytest.raises(BadBlob):
            engine.import_(1, damaged)

    assert engine.import_(1, blob) == 12


def test_copies_and_imports_need_an_empty_slot(engine: LlamaEngine) -> None:
    run(engine, [5], 0)
    run(engine, [6], 1)

    with pytest.raises(BadSlot):
        engine.copy(0, 1)
    with pytest.raises(BadSlot):
        engine.import_(1, engine.export(0))


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda engine: engine.drop(N_SLOTS), id="drop"),
        pytest.param(lambda engine: engine.drop(-1), id="drop-negative"),
        pytest.param(lambda engine: engine.truncate(0, 5), id="truncate-longer"),
        pytest.param(lambda engine: engine.truncate(0, -1), id="truncate-negative"),
        pytest.param(lambda engine: engine.copy(-1, 1), id="copy-from"),
        pytest.param(lambda engine: engine.copy(0, 99), id="copy-to"),
        pytest.param(lambda engine: engine.export(7), id="export"),
    ],
)
def test_slots_and_lengths_that_do_not_exist_are_refused(
    engine: LlamaEngine, call: Callable[[LlamaEngine], object]
) -> None:
    run(engine, [5, 6, 7, 8], 0)

    with pytest.raises(BadSlot):
        call(engine)


def test_a_slot_is_full_after_its_last_row_and_not_before(engine: LlamaEngine) -> None:
    run(engine, list(range(CTX - 1)), 0)

    with pytest.raises(NoSlotSpace):
        run(engine, [1, 2], 0, start=CTX - 1)
    run(engine, [1], 0, start=CTX - 1)
    with pytest.raises(NoSlotSpace):
        run(engine, [1], 0, start=CTX)


def test_a_refused_batch_changes_nothing(engine: LlamaEngine) -> None:
    run(engine, [5, 6], 0)
    for ids, slots, positions in (
        ([512], [0], [2]),
        ([-1], [0], [2]),
        ([1], [0], [3]),
        ([1, 2], [0, 0], [2, 2]),
        ([1, 2, 3], [0, 1, 0], [2, 0, 3]),
        ([1] * 600, [1] * 600, list(range(600))),
        ([1], [-5], [0]),
        ([1], [2**30], [0]),
        ([], [], []),
    ):
        with pytest.raises(BadBatch):
            engine.forward(ints(ids), ints(slots), ints(positions))

    expected = run(engine, [7], 0, start=2)
    run(engine, [5, 6], 1)
    assert run(engine, [7], 1, start=2) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_hostile_rows_are_refused_and_leave_the_slot_as_it_was(middle: LlamaEngine, value: float) -> None:
    row = np.linspace(-8, 8, 128, dtype=np.float32).reshape(1, 128)
    expected = middle.forward(row, ints(0), ints(0))
    hostile = row.copy()
    hostile[0, ::2] = value

    with pytest.raises(BadBatch):
        middle.forward(hostile, ints(1), ints(0))

    assert middle.forward(row, ints(1), ints(0)).tobytes() == expected.tobytes()


def test_a_row_of_absurd_size_does_not_touch_the_sequence_beside_it(middle: LlamaEngine) -> None:
    row = np.linspace(-8, 8, 128, dtype=np.float32).reshape(1, 128)
    expected = middle.forward(row, ints(0), ints(0))
    middle.drop(0)
    for value in (3e38, -3e38, 1e19, 1e-40):
        rows = np.concatenate([np.full_like(row, value), row])

        found = middle.forward(rows, ints([0, 1]), ints([0, 0]))

        assert found[1].tobytes() == expected.tobytes()
        middle.drop(0)
        middle.drop(1)


def test_results_belong_to_the_caller(middle: LlamaEngine) -> None:
    row = np.ones((1, 128), np.float32)
    first = middle.forward(row, ints(0), ints(0))
    kept = first.copy()
    middle.forward(row * 3, ints(1), ints(0))

    assert np.array_equal(first, kept)
    assert first.flags.writeable


def test_a_closed_engine_refuses_every_call_and_closes_again(engine: LlamaEngine) -> None:
    engine.close()
    engine.close()

    with pytest.raises(EngineFault):
        run(engine, [1], 0)


def test_loading_again_replaces_the_stage(engine: LlamaEngine, tiny_model: Path) -> None:
    run(engine, [1, 2, 3], 0)
    engine.load(whole_spec(tiny_model, n_slots=1))

    assert run(engine, [1], 0)
    with pytest.raises(BadBatch):
        run(engine, [1], 1)


def test_a_file_with_another_number_of_layers_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"has 6 layers, not \[0, 5\)"):
        make_engine().load(whole_spec(tiny_model, layer_end=5))


def test_a_file_that_is_no_model_is_refused_with_the_librarys_reason(tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"GGUF but not really")

    with pytest.raises(UnsupportedModel, match=r"bad\.gguf cannot be loaded: .+"):
        make_engine().load(whole_spec(file))


def test_more_slots_than_the_library_has_are_refused(tiny_model: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no context of 300 slots"):
        make_engine().load(whole_spec(tiny_model, n_slots=300))


def test_a_kv_cache_beyond_the_memory_is_refused_before_it_is_asked_for(tiny_model: Path) -> None:
    with pytest.raises(OutOfMemory, match="200 slots of 4000000 rows need"):
        make_engine().load(whole_spec(tiny_model, n_slots=200, ctx_per_slot=4_000_000))


def test_the_fallback_settings_are_another_class_and_not_exact(tiny_model: Path) -> None:
    engine = make_engine()
    info = engine.load(whole_spec(tiny_model, settings=EngineSettings(flash_attention=False, kv_type=KvType.F16)))

    assert "/fa0/kv=f16,f16/" in info.numerics_class
    assert info.profile is not Profile.TOLERANT
    engine.close()


def test_equal_stages_have_equal_self_test_digests_and_others_do_not(tiny_model: Path, stage_folder: Path) -> None:
    digests = []
    for path, start, end in (
        (tiny_model, 0, 6),
        (tiny_model, 0, 6),
        (write_stages(tiny_model, (0, 3), stage_folder)[0], 0, 3),
    ):
        engine = make_engine()
        spec = whole_spec(path, layer_start=start, layer_end=end, is_last_stage=end == 6)
        digests.append(engine.load(spec).self_test_digest)
        engine.close()

    assert digests[0] == digests[1] != digests[2]


def test_a_known_self_test_is_believed_on_the_same_machine_only(tiny_model: Path, tmp_path: Path) -> None:
    cache = FileSelfTestCache(tmp_path)
    engine = make_engine(cache)
    digest = engine.load(whole_spec(tiny_model)).self_test_digest
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace(digest, "remembered"))

    assert engine.load(whole_spec(tiny_model)).self_test_digest == "remembered"
    assert engine.load(whole_spec(tiny_model, stage_digest="e" * 64)).self_test_digest == digest
    assert make_engine(cache, cpu_name="other").load(whole_spec(tiny_model)).self_test_digest == digest
    file.write_text("damaged")
    assert engine.load(whole_spec(tiny_model)).self_test_digest == digest
    engine.close()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    cache = FileSelfTestCache(tmp_path / "missing")
    cache.put("key", SelfTestResult(Profile.EXACT, None, "digest"))

    assert cache.get("key") is None
