import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.worker.engine.chain_test import chain_equals_whole
from shared.llama.library import load_library
from tests.fakes.tiny_models import write_tiny_model
from tests.integration.engine.stages import Chain, write_stages

PROMPT = [(7 * i * i + 3 * i + 11) % 40_000 for i in range(40)]
FAMILIES = [("llama", True), ("llama", False), ("qwen2", False), ("qwen3", True), ("qwen3", False), ("gemma3", True)]
CUTS = [(0, 6), (0, 3, 6), (0, 2, 3, 6), (0, 5, 6), (0, 1, 2, 3, 4, 6), (0, 1, 2, 3, 4, 5, 6)]


@pytest.fixture(scope="module")
def demo_whole(demo_model: Path) -> Iterator[Chain]:
    chain = Chain.open([demo_model])
    yield chain
    chain.close()


@pytest.fixture(scope="module")
def expected(demo_whole: Chain) -> tuple[bytes, list[int]]:
    logits = demo_whole.prefill(PROMPT, 0).tobytes()
    return logits, demo_whole.greedy(PROMPT, 1, 12)


@pytest.mark.parametrize(
    "bounds",
    [(0, 15, 30), (0, 10, 20, 30), (0, 3, 22, 30), (0, 6, 12, 18, 24, 30)],
    ids=str,
)
def test_the_demo_model_in_stages_gives_the_whole_models_bits_and_tokens(
    demo_model: Path, expected: tuple[bytes, list[int]], stage_folder: Path, bounds: tuple[int, ...]
) -> None:
    chain = Chain.open(write_stages(demo_model, bounds, stage_folder))

    assert chain.prefill(PROMPT, 0).tobytes() == expected[0]
    assert chain.greedy(PROMPT, 1, 12) == expected[1]
    chain.close()


@pytest.mark.parametrize(("architecture", "tied"), FAMILIES)
def test_every_admitted_family_gives_the_wholes_bits_in_any_cut(
    architecture: str, tied: bool, stage_folder: Path
) -> None:
    model = write_tiny_model(stage_folder / f"{architecture}-{tied}.gguf", architecture, tied, seed=3)
    for bounds in CUTS:
        if architecture == "gemma3" and bounds[-2] == 5:
            continue  # in a process of its own, below
        verdict = chain_equals_whole(load_library(), model, write_stages(model, bounds, stage_folder))
        assert (verdict.equal, verdict.reason) == (True, ""), bounds


def run_program(whole: Path, stages: list[Path]) -> tuple[int, dict[str, object]]:
    command = [sys.executable, "-m", "services.worker.engine.chain_test", str(whole), *map(str, stages)]
    environ = os.environ | {"GGML_NO_BACKTRACE": "1"}  # an abort shall not start a debugger
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
    return ended.returncode, json.loads(ended.stdout or "{}")


def test_a_stage_without_a_sliding_layer_runs_too(stage_folder: Path) -> None:
    """The library aborts the process when a model has a window but no layer with one."""
    model = write_tiny_model(stage_folder / "gemma3-last-alone.gguf", "gemma3")

    assert run_program(model, write_stages(model, (0, 5, 6), stage_folder)) == (0, {"equal": True, "reason": ""})


def test_stages_of_another_model_are_refused_with_the_gap(tiny_model: Path, stage_folder: Path) -> None:
    other = write_tiny_model(stage_folder / "other.gguf", seed=1)
    stages = [*write_stages(tiny_model, (0, 2), stage_folder), *write_stages(other, (2, 6), stage_folder)]

    code, verdict = run_program(tiny_model, stages)

    assert (code, verdict["equal"]) == (1, False)
    assert "other logits than the whole model" in str(verdict["reason"])


def test_a_file_the_library_cannot_read_is_a_refusal_not_a_crash(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_model.read_bytes()[:5000])

    verdict = chain_equals_whole(load_library(), tiny_model, [broken])

    assert not verdict.equal
    assert "broken.gguf cannot be loaded" in verdict.reason
