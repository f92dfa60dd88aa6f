"""Models whose bits depend on the call: real worker processes, lanes and epochs that must sign equal digests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from services.worker.engine.loader import LlamaLoader
from services.worker.engine.self_test import FileSelfTestCache
from services.worker.ports import LoadedEngine, StageFile
from shared.contracts.messages import StageRef
from shared.domain.ids import ModelId, NodeId, TaskId
from shared.domain.numerics import ANY_ROWS, Profile, StageFacts
from shared.domain.plan import LayerRange
from shared.domain.task import SamplerParams
from shared.llama.library import load_library
from shared.runtime.clock import SystemClock
from tests.fakes.coordinator import FakeCoordinator, Job, Run, even_cuts
from tests.fakes.tiny_models import write_tiny_model
from tests.integration.worker.lanes import boundaries, decode, replay
from tests.integration.worker.workers import Process, serving_coordinator, worker_in_process, worker_processes

NUM_LAYERS = 6
NUM_TOKENS = 45
GREEDY, SEEDED = SamplerParams(temperature=0.0), SamplerParams(temperature=1.0, top_k=40, seed=7)
PROMPT_LENGTHS = (130, 64, 5, 1)
"""Two tiles and a rest; one tile; less; a tile of one row."""
F16, K_QUANTS = "f16", "k-quants"


@pytest.fixture(scope="module", params=[F16, K_QUANTS])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    if request.param == F16:
        return write_tiny_model(path, weight_type=gguf.GGMLQuantizationType.F16)
    return write_tiny_model(path, has_k_quants=True)


@pytest.fixture
async def coordinator(model: Path) -> AsyncIterator[FakeCoordinator]:
    async with serving_coordinator(model) as coordinator:
        yield coordinator


def facts_of(model: Path, folder: Path) -> StageFacts:
    """What an engine finds out about the whole model."""
    cache = FileSelfTestCache(folder)
    loader = LlamaLoader(load_library(), folder=folder, self_tests=cache, n_threads=1, now=SystemClock().now_s)
    whole = StageRef(model_id=ModelId("tiny"), model_root="", layers=LayerRange(0, NUM_LAYERS), num_layers=NUM_LAYERS)
    loaded = loader.load(whole, StageFile(model, "whole", 0), n_slots=1, ctx_per_slot=64)
    loaded.engine.close()
    return loaded.facts


def jobs_of(nodes: tuple[NodeId, ...], row_class: int) -> list[Job]:
    return [
        Job(
            TaskId(f"{length}"),
            tuple((31 * length + 11 * place) % 500 + 3 for place in range(length)),
            NUM_TOKENS,
            nodes,
            tuple(even_cuts(NUM_LAYERS, 3)),
            sampler=SEEDED if number % 2 else GREEDY,
            row_class=row_class,
            max_rows=256,
        )
        for number, length in enumerate(PROMPT_LENGTHS)
    ]


def nodes_of(workers: Sequence[Process]) -> tuple[NodeId, ...]:
    return tuple(worker.node_id for worker in workers)


async def decode_together(coordinator: FakeCoordinator, jobs: Sequence[Job]) -> list[Run]:
    runs = await asyncio.gather(*map(coordinator.begin, jobs))
    await asyncio.gather(*(decode(coordinator, run) for run in runs))
    return runs


async def test_audit_lanes_and_later_epochs_sign_what_lane_0_signs_under_load(
    coordinator: FakeCoordinator, model: Path, tmp_path: Path
) -> None:
    """Lane 0 decodes all answers together; lane 1 replays each, while lane 0 of the next epoch decodes."""
    facts = facts_of(model, tmp_path)
    assert facts.profile is Profile.DECODE_EXACT
    async with worker_processes(coordinator, 3, tmp_path) as workers:
        nodes = nodes_of(workers)
        rotated = (nodes[2], nodes[0], nodes[1])
        runs = await decode_together(coordinator, jobs_of(nodes, facts.small_rows or 0))

        # The next epoch goes on after window 1, at other nodes.
        again = [
            replace(
                run.job.again(run.token_ids[:11], rotated),
                first_window=2,
                sink_start=run.receipts[-1][1].receipt.out_digest,
            )
            for run in runs
        ]
        audits = [replace(run.job, lane=1, nodes=rotated, decodes=False) for run in runs]
        async with asyncio.TaskGroup() as tasks:
            decoding = tasks.create_task(decode_together(coordinator, again))
            replaying = [
                tasks.create_task(replay(coordinator, audit, run.records))
                for audit, run in zip(audits, runs, strict=True)
            ]
        resumed = decoding.result()
        replayed = [task.result() for task in replaying]
        for run, later, (receipts, records) in zip(runs, resumed, replayed, strict=True):
            assert boundaries(receipts) == boundaries(run.receipts), run.job.task_id
            assert records == run.records
            assert later.records == run.records[11:]
            audit = replace(later.job, lane=1, nodes=nodes, decodes=False)
            receipts, records = await replay(coordinator, audit, later.records)
            assert boundaries(receipts) == boundaries(later.receipts), run.job.task_id
            assert records == later.records


async def test_orders_without_small_calls_are_refused(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    async with worker_processes(coordinator, 3, tmp_path) as workers:
        (job, *_) = jobs_of(nodes_of(workers), ANY_ROWS)
        with pytest.raises(AssertionError, match="unsupported_model"):
            await coordinator.begin(job)


class BelievedExact(LlamaLoader):
    """Promises more than the stage keeps."""

    def load(self, ref: StageRef, file: StageFile, *, n_slots: int, ctx_per_slot: int) -> LoadedEngine:
        loaded = super().load(ref, file, n_slots=n_slots, ctx_per_slot=ctx_per_slot)
        return replace(loaded, profile=Profile.EXACT, small_rows=None)


async def test_without_small_calls_the_lanes_part(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    """What the rule is for: the tests above would fail without it."""
    library = load_library()
    cache = FileSelfTestCache(tmp_path)
    loader = BelievedExact(library, folder=tmp_path, self_tests=cache, n_threads=1, now=SystemClock().now_s)
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                worker_in_process(coordinator, tmp_path / name, loader=loader, numerics_class=library.build_class)
            )
            for name in "abc"
        ]
        nodes = tuple(worker.node_id for worker in workers)
        (run,) = await decode_together(coordinator, jobs_of(nodes, ANY_ROWS)[:1])
        audit = replace(run.job, lane=1, nodes=(*nodes[2:], *nodes[:2]), decodes=False)
        receipts, _ = await replay(coordinator, audit, run.records)
        assert boundaries(receipts) != boundaries(run.receipts)
