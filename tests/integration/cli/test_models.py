"""`butterfly models` over real files and the real engine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from services.cli.__main__ import main
from tests.fakes.tiny_models import write_tiny_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["models", *arguments, "--data-dir", str(tmp_path / "data")])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def stored(tmp_path: Path) -> list[str]:
    return sorted(file.name for file in (tmp_path / "data" / "models").rglob("*") if file.is_file())


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("qwen2", False)])
def test_a_sound_model_is_admitted_and_listed(models: Run, tmp_path: Path, architecture: str, tied: bool) -> None:
    source = write_tiny_model(tmp_path / "Tiny One.gguf", architecture=architecture, tied=tied, num_layers=4)
    code, out, err = models("add", str(source))
    assert (code, out) == (0, "tiny-one is added\n"), err
    assert stored(tmp_path) == ["tiny-one.gguf"]
    assert models()[1].splitlines()[1].split()[:3] == ["tiny-one", architecture, "4"]
    assert models("remove", "tiny-one")[0] == 0
    assert stored(tmp_path) == []


def test_a_truncated_model_is_refused_with_the_reason(models: Run, tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "tiny.gguf")
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size - 1_000)
    code, _, err = models("add", str(source))
    assert code == 1
    assert "tiny.gguf: ends inside the tensor" in err
    assert stored(tmp_path) == []


def test_a_foreign_file_is_refused_with_the_reason(models: Run, tmp_path: Path) -> None:
    source = tmp_path / "notes.gguf"
    source.write_text("not a model at all")
    code, _, err = models("add", str(source))
    assert code == 1
    assert "it is no GGUF file" in err


def test_a_model_that_the_engine_cannot_run_is_refused(models: Run, tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "tiny.gguf")
    content = source.read_bytes()
    source.write_bytes(content.replace(b"blk.2.attn_norm.weight", b"blk.2.some_norm.weight"))
    code, _, err = models("add", str(source))
    assert code == 1
    assert err.startswith("butterfly: tiny.gguf is refused: ")
    assert err.count("\n") == 1
    assert stored(tmp_path) == []


def test_no_models_is_said_with_what_to_do(models: Run) -> None:
    code, out, _ = models("list")
    assert code == 0
    assert "butterfly models pull" in out
