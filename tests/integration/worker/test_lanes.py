"""Worker processes with the real model: every lane and every epoch signs the same digests for the same rows."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from shared.domain.ids import TaskId
from shared.domain.task import SamplerParams
from tests.fakes.coordinator import FakeCoordinator, Job, even_cuts
from tests.integration.worker.lanes import boundaries, decode, replay
from tests.integration.worker.workers import serving_coordinator, worker_processes

NUM_LAYERS = 30
NUM_TOKENS = 45
PROMPT = tuple((41 * place) % 40_000 + 300 for place in range(70))  # longer than a chunk
SAMPLERS = {
    "greedy": SamplerParams(temperature=0.0),
    "sampled": SamplerParams(
        temperature=0.9,
        top_p=0.95,
        seed=7,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.1,
        logprobs=2,
    ),
}


@pytest.fixture
async def coordinator(demo_model: Path) -> AsyncIterator[FakeCoordinator]:
    async with serving_coordinator(demo_model) as coordinator:
        yield coordinator


async def test_audit_lanes_and_later_epochs_sign_the_digests_of_lane_0(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    """Lane 0 decodes both answers together, row by row; lane 1 replays each by itself, in chunks."""
    async with worker_processes(coordinator, 3, tmp_path) as workers:
        nodes = tuple(worker.node_id for worker in workers)
        rotated = (nodes[2], nodes[0], nodes[1])
        jobs = [
            Job(
                TaskId(name),
                PROMPT,
                NUM_TOKENS,
                nodes,
                tuple(even_cuts(NUM_LAYERS, 3)),
                sampler=sampler,
                threads=2,
                max_rows=256,
            )
            for name, sampler in SAMPLERS.items()
        ]
        runs = await asyncio.gather(*map(coordinator.begin, jobs))
        decoded = await asyncio.gather(*(decode(coordinator, run) for run in runs))
        for job, run, receipts in zip(jobs, runs, decoded, strict=True):
            lane_0 = boundaries(receipts)
            assert [len(digests) for digests in lane_0] == [4] * 4  # rows [0, 70), [70, 80), [80, 100), [100, 114)

            audit = replace(job, lane=1, nodes=rotated, decodes=False)
            replayed, records = await replay(coordinator, audit, run.records)
            assert boundaries(replayed) == lane_0, job.task_id
            assert records == run.records

            # The next epoch goes on after window 1, with windows [80, 90), [90, 110), [110, 114).
            sink_start = receipts[-1][1].receipt.out_digest
            again = replace(job.again(run.token_ids[:11], rotated), first_window=2, sink_start=sink_start)
            second = await coordinator.begin(again)
            resumed = boundaries(await decode(coordinator, second))
            assert second.records == run.records[11:]
            for old, new in zip(lane_0, resumed, strict=True):
                assert (new[0][0], new[-1][1]) == (old[2][0], old[3][1]), job.task_id

            audit = replace(again, lane=1, nodes=nodes, decodes=False)
            replayed, records = await replay(coordinator, audit, second.records)
            assert boundaries(replayed) == resumed, job.task_id
            assert records == second.records
            await coordinator.finish(second)
