from pathlib import Path

import pytest

from services.worker.engine.base import EngineSettings, KvType
from services.worker.engine.self_test import SelfTestResult
from services.worker.engine.weights import bounded, matrix_types
from shared.domain.numerics import Profile
from tests.fakes.tiny_models import write_tiny_model

EXACT = EngineSettings()
ALL_EQUAL = SelfTestResult(Profile.EXACT, None, "ab")


@pytest.mark.parametrize("types", [{"Q4_0"}, {"Q4_1", "Q8_0"}])
def test_types_that_are_exact_by_construction_stay_exact(types: set[str]) -> None:
    assert bounded(ALL_EQUAL, types, EXACT) == ALL_EQUAL


def test_of_other_types_a_short_test_does_not_prove_that_they_are_exact() -> None:
    assert bounded(ALL_EQUAL, {"Q8_0", "Q6_K"}, EXACT) == SelfTestResult(Profile.DECODE_EXACT, 3, "ab")
    found = SelfTestResult(Profile.DECODE_EXACT, 7, "ab")
    assert bounded(found, {"Q6_K"}, EXACT).small_rows == 3
    assert bounded(SelfTestResult(Profile.DECODE_EXACT, 1, "ab"), {"F16"}, EXACT).small_rows == 1


def test_other_settings_promise_no_more_than_single_rows() -> None:
    fallback = EngineSettings(flash_attention=False, kv_type=KvType.F16)
    assert bounded(ALL_EQUAL, {"Q8_0"}, fallback) == SelfTestResult(Profile.DECODE_EXACT, 1, "ab")


def test_what_promises_nothing_is_left_so() -> None:
    nothing = SelfTestResult(Profile.TOLERANT, 16, "ab")
    assert bounded(nothing, {"Q4_0"}, EXACT) == nothing


def test_the_embedding_counts_where_it_is_the_head(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf", has_k_quants=True)
    assert matrix_types(model, is_last_stage=True) == {"Q8_0", "Q6_K"}
