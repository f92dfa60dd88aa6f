import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from services.worker.domain.batching import rows_of
from services.worker.domain.token_rule import choose_token
from services.worker.engine.base import Ids, Rows
from services.worker.engine.replay import replay
from shared.contracts.receipts import BundleBody
from shared.domain.bundle import Bundle
from shared.domain.errors import InvalidInput
from shared.domain.task import SamplerParams, TokenRecord
from shared.llama.cutting import open_model
from shared.llama.library import load_library
from tests.fakes.bundles import HonestRun
from tests.fakes.tiny_models import write_tiny_model
from tests.integration.engine.stages import Chain, ints

PROMPT = (3, 141, 59, 26, 53)
NUM_TOKENS = 16
SAMPLER = SamplerParams(temperature=0.8, top_k=40, seed=5, repetition_penalty=1.1, logprobs=2)


@dataclass(frozen=True)
class EngineRun(HonestRun):
    """An answer of a real model."""

    made: tuple[TokenRecord, ...] = ()
    hidden: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)

    @property
    def records(self) -> tuple[TokenRecord, ...]:
        return self.made

    def hidden_rows(self, boundary: int) -> Iterable[bytes]:
        return self.hidden[boundary]


def run_of(chain: Chain, model: Path, cuts: tuple[int, ...]) -> EngineRun:
    """Decode row by row, as lane 0 does."""
    ids, made = list(PROMPT), []
    hidden: dict[int, list[bytes]] = {boundary: [] for boundary in cuts[1:-1]}
    for row in range(len(PROMPT) + NUM_TOKENS - 1):
        rows: Ids | Rows = ints(ids[row])
        for boundary, (_, stage) in zip(cuts[1:], chain.stages, strict=True):
            rows = stage.forward(rows, ints(0), ints(row)).astype(np.float32)
            if boundary in hidden:
                hidden[boundary] += rows_of(rows)
        if row >= len(PROMPT) - 1:
            generated = ids[len(PROMPT) :]
            made.append(choose_token(rows[0], position=row, params=SAMPLER, prompt_ids=PROMPT, generated_ids=generated))
            ids.append(made[-1].token_id)
    return EngineRun(
        prompt_ids=PROMPT,
        token_ids=tuple(ids[len(PROMPT) :]),
        sampler=SAMPLER,
        epochs=(2, 3),
        model_root=open_model(model).root(),
        numerics=load_library().build_class,
        cuts=cuts,
        made=tuple(made),
        hidden={boundary: tuple(rows) for boundary, rows in hidden.items()},
    )


@pytest.fixture
def run(tiny_chain: Chain, tiny_model: Path) -> EngineRun:
    return run_of(tiny_chain, tiny_model, (0, 2, 3, 6))


def test_an_honest_answer_is_computed_again_to_the_last_bit(run: EngineRun, tiny_model: Path) -> None:
    verdict = replay(load_library(), tiny_model, run.bundle())
    assert (verdict.equal, verdict.reason) == (True, "")
    assert (verdict.num_tokens, verdict.num_digests) == (run.bundle().entries[-1].num_tokens, 5 * 4)


def test_an_answer_of_one_stage_is_computed_again(tiny_whole: Chain, tiny_model: Path) -> None:
    verdict = replay(load_library(), tiny_model, run_of(tiny_whole, tiny_model, (0, 6)).bundle())
    assert (verdict.equal, verdict.num_digests) == (True, 5 * 2)


def test_a_token_that_the_rule_does_not_give_is_found(run: EngineRun, tiny_model: Path) -> None:
    wrong = replace(run.made[6], token_id=(run.made[6].token_id + 1) % 512)
    made = (*run.made[:6], wrong, *run.made[7:])
    lying = replace(run, made=made, token_ids=tuple(record.token_id for record in made))
    verdict = replay(load_library(), tiny_model, lying.bundle())
    assert not verdict.equal
    assert verdict.reason == f"token 6 of the answer is {wrong.token_id}, the model gives {run.made[6].token_id}"


def test_rows_that_the_model_does_not_give_are_found(run: EngineRun, tiny_model: Path) -> None:
    """Two nodes that agree on a lie which changes no token."""
    rows = list(run.hidden[3])
    rows[7] = bytes(len(rows[7]))
    verdict = replay(load_library(), tiny_model, replace(run, hidden={**run.hidden, 3: tuple(rows)}).bundle())
    assert not verdict.equal
    assert verdict.reason == "window 2, the boundary at layer 3: the model gives other rows than were signed"


def test_another_model_is_told_apart(run: EngineRun, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", seed=9)
    verdict = replay(load_library(), other, run.bundle())
    assert (verdict.equal, verdict.reason) == (False, "other.gguf is not the model that gave this answer")


def test_in_another_numerics_class_only_the_tokens_are_compared(run: EngineRun, tiny_model: Path) -> None:
    verdict = replay(load_library(), tiny_model, replace(run, numerics="another machine").bundle())
    assert (verdict.equal, verdict.num_digests) == (True, 0)
    assert "only the tokens were compared" in verdict.reason


def test_a_bundle_that_does_not_hold_is_not_replayed(run: EngineRun, tiny_model: Path) -> None:
    with pytest.raises(InvalidInput):
        replay(load_library(), tiny_model, replace(run.bundle(), prompt_ids=(1, 2)))


def run_program(model: Path, bundle: Bundle) -> tuple[int, dict[str, object]]:
    ended = subprocess.run(
        [sys.executable, "-m", "services.worker.engine.replay", str(model)],
        input=BundleBody.of(bundle).model_dump_json(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},
    )
    return ended.returncode, json.loads(ended.stdout)


def test_as_a_program_it_prints_its_verdict(run: EngineRun, tiny_model: Path) -> None:
    code, verdict = run_program(tiny_model, run.bundle())
    assert (code, verdict["equal"], verdict["num_tokens"]) == (0, True, run.bundle().entries[-1].num_tokens)
    code, verdict = run_program(tiny_model, replace(run.bundle(), answer_ids=(1,)))
    assert (code, verdict["equal"]) == (1, False)
    assert verdict["reason"] == "the answer's ids are not those that were committed"
