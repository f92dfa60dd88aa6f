"""Worker processes with the real model: every lane and every epoch signs the same digests for the same rows."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shared.domain.ids import TaskId
from shared.domain.receipt import SignedReceipt
from shared.domain.task import SamplerParams, TokenRecord
from shared.domain.windows import Window, WindowSchedule
from tests.fakes.coordinator import FakeCoordinator, Job, Run, even_cuts
from tests.fakes.orders import CHECKPOINT_INTERVAL, WINDOW_CHECKPOINTS
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

Digests = list[tuple[str, str]]


@pytest.fixture
async def coordinator(demo_model: Path) -> AsyncIterator[FakeCoordinator]:
    async with serving_coordinator(demo_model) as coordinator:
        yield coordinator


def boundaries(lane: Sequence[Sequence[SignedReceipt]]) -> list[Digests]:
    """Per boundary, from the ids up, its chain before and after each window; neighbours agree on it."""
    below = [[(one.receipt.in_start, one.receipt.in_digest) for one in seat] for seat in lane]
    above = [[(one.receipt.out_start, one.receipt.out_digest) for one in seat] for seat in lane]
    assert below[1:] == above[:-1]
    return [*below, above[-1]]


def ended(windows: WindowSchedule, num_rows: int) -> list[Window]:
    """The epoch's windows of a session of so many rows."""
    found = [windows.window(windows.first_index)]
    while found[-1].row_end < num_rows:
        found.append(windows.window(found[-1].index + 1))
    return [*found[:-1], found[-1].closed_at(num_rows)]


def schedule_of(job: Job) -> WindowSchedule:
    first_row = len(PROMPT) + len(job.generated_ids) - 1 if job.generated_ids else 0
    return WindowSchedule(len(PROMPT), job.first_window or 0, first_row, CHECKPOINT_INTERVAL, WINDOW_CHECKPOINTS)


async def decode(coordinator: FakeCoordinator, run: Run) -> list[list[SignedReceipt]]:
    """All of lane 0, its last window closed where it ends."""
    await run.until()
    num_rows = len(PROMPT) + len(run.job.generated_ids) + len(run.records) - 1
    windows = ended(schedule_of(run.job), num_rows)
    await coordinator.seal(run, windows[-1].index, num_rows)
    return await coordinator.signed(run, len(windows))


async def replay(
    coordinator: FakeCoordinator, job: Job, records: Sequence[TokenRecord]
) -> tuple[list[list[SignedReceipt]], list[TokenRecord]]:
    """All of an audit lane, window after window, from the ids alone: `records` are those of lane 0."""
    ids = (*PROMPT, *job.generated_ids, *(record.token_id for record in records))
    run = await coordinator.begin(job)
    windows = ended(schedule_of(job), len(ids) - 1)
    await coordinator.seal(run, windows[-1].index, windows[-1].row_end)
    for count, window in enumerate(windows, 1):
        await coordinator.release(run, window.index, window.row_start, ids[window.row_start : window.row_end])
        await coordinator.signed(run, count)
    return run.receipts, run.records


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
