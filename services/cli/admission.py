"""Whether a new model file may join: sound as a file, and the same model when cut into stages."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from services.cli.domain.model_cuts import trial_ranges
from shared.domain.errors import UnsupportedModel
from shared.llama.cutting import ModelFile, admission_of, cut_stage, open_model

CHAIN_TEST = ("-m", "services.worker.engine.chain_test")
"""In a process of its own: a file that the library dislikes may abort it."""
_LIMIT_S = 1_800.0


def admit(path: Path) -> str:
    """What to tell the operator of an admitted model: empty, or why it only runs whole.

    Raises `BadModelFile` with what is wrong with the file, `UnsupportedModel` when the engine cannot run it or its
    stages give other results than the whole. Writes a second copy of the file, in its folder, while it tests.
    """
    model = open_model(path)
    family = admission_of(model)
    with tempfile.TemporaryDirectory(prefix=f"{path.stem}-", dir=path.parent) as scratch:
        stages = _cut(model, Path(scratch)) if family.splittable else [path]
        refused = _chain_test(path, stages)
    if refused:
        raise UnsupportedModel(f"{path.name} is refused: {refused}")
    return "" if family.splittable else f"it runs on one worker only: {family.reason}"


def _cut(model: ModelFile, scratch: Path) -> list[Path]:
    stages = []
    for start, end in trial_ranges(model.num_layers):
        stage = scratch / f"{start}-{end}.gguf"
        cut_stage(model, start, end).write_to(stage)
        stages.append(stage)
    return stages


def _chain_test(whole: Path, stages: Sequence[Path]) -> str:
    """Why the model cannot be served; empty when it can."""
    command = [sys.executable, *CHAIN_TEST, str(whole), *map(str, stages)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return f"the engine did not finish its test within {_LIMIT_S:g} s"
    verdict = _verdict(done.stdout)
    if verdict is None:
        said = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "")
        return f"the engine gave up on it (exit code {done.returncode}) {said}".rstrip()
    is_equal, reason = verdict
    return "" if is_equal and done.returncode == 0 else reason


def _verdict(output: str) -> tuple[bool, str] | None:
    last = output.strip().rsplit("\n", 1)[-1]
    try:
        said = json.loads(last)
        return bool(said["equal"]), str(said["reason"])
    except (ValueError, TypeError, KeyError):
        return None
