"""Worker processes with the real model over loopback: cutting it changes no token, whatever dies."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from services.worker.engine.loader import LlamaLoader
from services.worker.engine.self_test import FileSelfTestCache
from services.worker.ports import StageFile
from shared.contracts.messages import LinkFault, StageRef
from shared.domain.ids import ModelId, TaskId
from shared.domain.plan import LayerRange
from shared.domain.task import SamplerParams
from shared.llama.library import load_library
from shared.runtime.clock import SystemClock
from tests.fakes.coordinator import FakeCoordinator, Job, even_cuts
from tests.integration.worker.workers import Process, serving_coordinator, worker_processes

NUM_LAYERS = 30
NUM_TOKENS = 12
PROMPTS = [tuple((37 * number + 11 * place) % 40_000 + 300 for place in range(5 + 25 * number)) for number in range(4)]


@pytest.fixture(scope="module")
def whole_model_tokens(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """Greedy tokens after each of `PROMPTS`, by the whole model in this process, one sequence at a time."""
    folder = tmp_path_factory.mktemp("selftest")
    cache = FileSelfTestCache(folder)
    loader = LlamaLoader(load_library(), folder=folder, self_tests=cache, n_threads=1, now=SystemClock().now_s)
    whole = StageRef(model_id=ModelId("demo"), model_root="", layers=LayerRange(0, NUM_LAYERS), num_layers=NUM_LAYERS)
    engine = loader.load(whole, StageFile(demo_model, "whole", 0), n_slots=1, ctx_per_slot=256).engine
    slot = np.zeros(1, np.int32)
    answers = []
    for prompt in PROMPTS:
        tokens: list[int] = []
        for position in range(len(prompt) + NUM_TOKENS - 1):
            given = prompt[position] if position < len(prompt) else tokens[-1]
            logits = engine.forward(np.array([given], np.int32), slot, np.array([position], np.int32))
            if position >= len(prompt) - 1:
                tokens.append(int(logits[0].argmax()))
        answers.append(tokens)
        engine.drop(0)
    engine.close()
    return answers


@pytest.fixture
async def coordinator(demo_model: Path) -> AsyncIterator[FakeCoordinator]:
    async with serving_coordinator(demo_model) as coordinator:
        yield coordinator


def job_of(workers: list[Process], number: int, cuts: list[LayerRange], *, name: str = "", **rest: object) -> Job:
    fields = {
        "task_id": TaskId(f"{name}-{number}"),
        "prompt_ids": PROMPTS[number],
        "max_tokens": NUM_TOKENS,
        "nodes": tuple(worker.node_id for worker in workers[: len(cuts)]),
        "cuts": tuple(cuts),
        "max_rows": 256,
        "threads": 2,
    }
    return Job(**{**fields, **rest})  # type: ignore[arg-type]  # as Job names them


async def test_every_cut_gives_the_tokens_of_the_whole_model(
    coordinator: FakeCoordinator, tmp_path: Path, whole_model_tokens: list[list[int]]
) -> None:
    uneven = [LayerRange(0, 4), LayerRange(4, 23), LayerRange(23, 30)]
    async with worker_processes(coordinator, 5, tmp_path) as workers:
        for cuts in (*(even_cuts(NUM_LAYERS, count) for count in (1, 2, 3, 5)), uneven):
            name = "+".join(map(str, cuts))
            jobs = [job_of(workers, number, cuts, name=name) for number in range(len(PROMPTS))]
            assert await coordinator.generate(jobs[0]) == whole_model_tokens[0], name
            assert await asyncio.gather(*map(coordinator.generate, jobs[1:])) == whole_model_tokens[1:], name


async def test_seeded_sampling_repeats_and_a_killed_worker_changes_no_token(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    sampler = SamplerParams(temperature=0.9, top_p=0.95, seed=7)
    cuts = even_cuts(NUM_LAYERS, 2)
    async with worker_processes(coordinator, 3, tmp_path) as workers:
        expected = await coordinator.generate(job_of(workers, 3, cuts, name="first", sampler=sampler, max_tokens=40))
        job = job_of(workers, 3, cuts, name="second", sampler=sampler, max_tokens=40)
        run = await coordinator.begin(job)
        await run.until(10)
        workers[1].kill()
        await coordinator.until(lambda: any(isinstance(report, LinkFault) for report in coordinator.reports))
        done = tuple(run.token_ids)
        again = job.again(done, [workers[0].node_id, workers[2].node_id])
        assert [*done, *await coordinator.generate(again)] == expected
