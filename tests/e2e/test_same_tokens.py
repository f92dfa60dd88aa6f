"""Real clusters of real processes give the tokens of the whole model in one process, one by one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.domain.task import SamplerParams
from tests.e2e.running import Cluster, end_cluster, start_cluster
from tests.e2e.tokens import expected_tokens, generated_tokens
from tests.fakes.free_ports import free_base_port
from tests.integration.engine.stages import Chain

LONG_PROMPT = [(11 * i) % 5000 + 300 for i in range(150)]  # three chunks of prefill
SHORT_PROMPT = [504, 3575, 282, 4649, 314]  # "The capital of France is"
GREEDY = {"temperature": 0}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "top_k": 60, "seed": 1234}


@pytest.fixture(scope="module")
def whole_model(demo_model: Path) -> Iterator[Chain]:
    chain = Chain.open([demo_model])
    yield chain
    chain.close()


def test_greedy_tokens_are_those_of_the_whole_model(cluster: Cluster, whole_model: Chain) -> None:
    for prompt in (SHORT_PROMPT, LONG_PROMPT):
        assert generated_tokens(cluster, prompt, GREEDY) == expected_tokens(
            whole_model, prompt, SamplerParams(temperature=0)
        )


def test_seeded_sampling_repeats_and_is_that_of_the_whole_model(cluster: Cluster, whole_model: Chain) -> None:
    sampler = SamplerParams(temperature=0.9, top_p=0.95, top_k=60, seed=1234)
    expected = expected_tokens(whole_model, SHORT_PROMPT, sampler)
    assert generated_tokens(cluster, SHORT_PROMPT, SAMPLED) == expected
    assert generated_tokens(cluster, SHORT_PROMPT, SAMPLED) == expected
    assert generated_tokens(cluster, SHORT_PROMPT, {**SAMPLED, "seed": 4321}) != expected


def test_eight_sequences_at_once_get_the_tokens_each_gets_alone(cluster: Cluster) -> None:
    prompts = [LONG_PROMPT[start : start + 10 + 7 * start] for start in range(8)]
    alone = [generated_tokens(cluster, prompt, GREEDY) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda prompt: generated_tokens(cluster, prompt, GREEDY), prompts))
    assert together == alone


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_the_number_of_stages_changes_no_token(
    stages: int, demo_model: Path, whole_model: Chain, tmp_path: Path
) -> None:
    """Three stages are the shared cluster's, in the tests above."""
    running = start_cluster(
        demo_model, tmp_path / "cluster", base_port=free_base_port(stages), workers=stages, stages=stages
    )
    try:
        held = {(stage["start"], stage["end"]) for node in running.status()["nodes"] for stage in node["stages"]}
        assert len(held) == stages
        tokens = generated_tokens(running, LONG_PROMPT, GREEDY)
    finally:
        end_cluster(running)
    assert tokens == expected_tokens(whole_model, LONG_PROMPT, SamplerParams(temperature=0))
