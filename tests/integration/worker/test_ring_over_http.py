"""Workers that talk real HTTP, around engines whose tokens can be foretold."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.worker.service import incoming_links
from shared.contracts.frame import Frame, FrameKind, encode_frame
from shared.contracts.messages import Leave, LinkFault
from shared.domain.ids import TaskId
from shared.domain.task import SamplerParams
from tests.fakes.coordinator import FakeCoordinator, Job, even_cuts
from tests.fakes.engine import SyntheticModel
from tests.integration.worker.workers import InProcess, serving_coordinator, worker_in_process, workers_in_process

MODEL = SyntheticModel(num_layers=6)


def job_of(workers: list[InProcess], number: int = 0, *, num_prompt: int = 20, max_tokens: int = 20) -> Job:
    return Job(
        task_id=TaskId(f"task-{number}"),
        prompt_ids=tuple((5 * number + place) % 64 for place in range(num_prompt)),
        max_tokens=max_tokens,
        nodes=tuple(worker.node_id for worker in workers),
        cuts=tuple(even_cuts(6, len(workers))),
        max_rows=256,
    )


def size_of_stages(data_dir: Path) -> int:
    return sum(file.stat().st_size for file in (data_dir / "stages").glob("*.gguf"))


@pytest.fixture
async def coordinator(tiny_model: Path) -> AsyncIterator[FakeCoordinator]:
    async with serving_coordinator(tiny_model) as coordinator:
        yield coordinator


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
async def test_a_ring_over_http_gives_the_tokens_of_the_whole_model(
    coordinator: FakeCoordinator, num_stages: int, tmp_path: Path
) -> None:
    async with workers_in_process(coordinator, num_stages, tmp_path) as workers:
        jobs = [job_of(workers, number, num_prompt=1 + 60 * number) for number in range(3)]
        found = await asyncio.gather(*(coordinator.generate(job) for job in jobs))
    assert found == [MODEL.generate(job.prompt_ids, 20) for job in jobs]


async def test_a_worker_downloads_its_own_layers_once(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    async with workers_in_process(coordinator, 2, tmp_path) as workers:
        await coordinator.generate(job_of(workers, 1))
        downloaded = coordinator.downloaded_bytes
        await coordinator.generate(job_of(workers, 2))
        assert coordinator.downloaded_bytes == downloaded
        assert sum(map(size_of_stages, (tmp_path / "worker0", tmp_path / "worker1"))) == downloaded


async def test_a_worker_that_leaves_says_so_and_the_rest_go_on_without_it(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    sampler = SamplerParams(temperature=0.8, seed=3)
    async with workers_in_process(coordinator, 2, tmp_path) as workers:
        async with worker_in_process(coordinator, tmp_path / "third") as third:
            job = job_of([workers[0], third, workers[1]], max_tokens=200)
            job = Job(**{**vars(job), "sampler": sampler})
            run = await coordinator.begin(job)
            await run.until(5)
        await coordinator.until(lambda: any(isinstance(report, Leave) for report in coordinator.reports))
        done = tuple(run.token_ids)
        again = Job(**{**vars(job.again(done, [worker.node_id for worker in workers])), "cuts": tuple(even_cuts(6, 2))})
        assert [*done, *await coordinator.generate(again)] == MODEL.generate(job.prompt_ids, 200, sampler=sampler)


async def test_a_worker_joins_again_when_the_coordinator_has_forgotten_it(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    async with workers_in_process(coordinator, 1, tmp_path) as workers:
        coordinator.forget_nodes()
        await coordinator.wait_for_nodes(1)
        assert await coordinator.generate(job_of(workers)) == MODEL.generate(tuple(range(20)), 20)


async def test_only_the_coordinator_commands_a_worker(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    async with workers_in_process(coordinator, 1, tmp_path) as workers, httpx.AsyncClient() as client:
        stop = {"type": "session_stop", "task_id": "t", "epoch": 1, "reason": "test"}
        for headers in ({}, {"Authorization": "Bearer guess"}):
            answer = await client.post(f"{workers[0].url}/messages", json=stop, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")


async def test_a_link_that_no_assignment_names_is_refused(
    coordinator: FakeCoordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_links, "ASSIGNMENT_PATIENCE_S", 0.02)
    async with workers_in_process(coordinator, 1, tmp_path) as workers, httpx.AsyncClient() as client:
        answer = await client.post(f"{workers[0].url}/links", content=b"", headers={"Authorization": "Bearer guess"})
        assert answer.status_code == 401


async def test_a_peer_that_breaks_the_protocol_loses_its_link_and_is_reported(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    async with workers_in_process(coordinator, 2, tmp_path) as workers, httpx.AsyncClient() as client:
        first, second = workers
        job = job_of(workers, max_tokens=200)
        run = await coordinator.begin(job)
        await run.until(2)
        answer = await client.post(
            f"{second.url}/links",
            content=encode_frame(Frame(FrameKind.KEEP_ALIVE)) + b"not a frame at all",
            headers={"Authorization": f"Bearer {first.node_id}|{second.node_id}"},
        )
        assert answer.json()["code"] == "protocol_violation"
        await coordinator.until(lambda: any(isinstance(report, LinkFault) for report in coordinator.reports))
        fault = next(report for report in coordinator.reports if isinstance(report, LinkFault))
        assert (fault.peer, fault.outgoing) == (first.node_id, False)


async def test_the_state_of_a_worker_shows_its_stages_seats_and_links(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    async with workers_in_process(coordinator, 2, tmp_path) as workers, httpx.AsyncClient() as client:
        job = job_of(workers, max_tokens=5)
        run = await coordinator.begin(job)
        await run.until()
        state = (await client.get(f"{workers[1].url}/state")).json()
        assert [(stage["start"], stage["end"], stage["seats"]) for stage in state["stages"]] == [(3, 6, 1)]
        assert [(seat["task_id"], seat["rows"]) for seat in state["seats"]] == [("task-0", 24)]
        assert state["links_to"] == state["links_from"] == [workers[0].node_id]
        assert state["rows_dropped"] == {}
        async with asyncio.timeout(5):  # readiness looks four times a second
            while (await client.get(f"{workers[1].url}/readyz")).status_code != 200:
                pass
