"""Several pipelines of real worker processes, and a node that joins while answers run."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import httpx
import pytest

from services.cli.domain.cluster import Kind
from shared.contracts.coordinator import NodeList
from shared.contracts.scheduler import SubmitTask
from shared.domain.ids import NodeId
from shared.domain.session import NodeState
from shared.domain.task import InferenceTask, Verification
from shared.domain.task_state import TaskState
from shared.registry.base import TaskRegistry
from shared.registry.connection import make_clients
from shared.registry.redis_receipts import RedisReceiptStore
from shared.registry.redis_registry import RedisTaskRegistry
from shared.resilience.context import SERVICE_TOKEN_HEADER
from tests.synthetic.cluster import SyntheticCluster, synthetic_cluster
from tests.synthetic.load import draw_task, right_ids

SETTINGS = {
    "BUTTERFLY_PARTITION__REBALANCE": "advised",
    "BUTTERFLY_PARTITION__REBALANCE_INTERVAL_S": "0",
    "BUTTERFLY_COORDINATION__TAIL_AUDIT_FRACTION": "0",
}
WORKERS = 6
"""One pipeline: two would leave no node outside."""
LIMIT_S = 120.0


@dataclass
class Answer:
    task: InferenceTask
    epochs: set[int] = field(default_factory=set)
    executors: frozenset[NodeId] = frozenset()
    lanes: int = 0


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyntheticCluster]:
    folder = tmp_path_factory.mktemp("pipelines")
    module = "tests.synthetic.lone_worker"
    with synthetic_cluster(folder, workers=WORKERS, stages=3, settings=SETTINGS, worker_module=module) as cluster:
        yield cluster


class Asking:
    """Tasks in mode `audit`, whose every token is held against the right one."""

    def __init__(self, cluster: SyntheticCluster, registry: TaskRegistry, receipts: RedisReceiptStore) -> None:
        self._registry, self._receipts, self._rng = registry, receipts, Random(5)
        token = cluster.secrets.service_token
        self._http = httpx.AsyncClient(headers={SERVICE_TOKEN_HEADER: token}, trust_env=False, timeout=30)
        self._coordinator = cluster.url(Kind.COORDINATOR)
        self._scheduler, self._partitioner = cluster.url(Kind.SCHEDULER), cluster.url(Kind.PARTITIONER)

    async def ask(self) -> Answer:
        task = draw_task(self._rng)
        while task.verification is not Verification.AUDIT:
            task = draw_task(self._rng)
        body = SubmitTask(task=task).model_dump_json()
        sent = await self._http.post(
            f"{self._scheduler}/tasks", content=body, headers={"Content-Type": "application/json"}
        )
        assert sent.status_code == 202, sent.text

        async def has_ended() -> bool:
            record = await self._registry.record(task.task_id)
            assert record.state is not TaskState.FAILED, record.error
            return record.state is TaskState.COMPLETED

        await until(has_ended)
        assert [record.token_id for record in await self._registry.tokens(task.task_id)] == right_ids(task)
        answer = Answer(task)
        for entry in await self._receipts.entries(task.task_id):
            answer.epochs.add(entry.epoch)
            signed = [json.loads(receipt.text.decode().partition("\n")[2]) for receipt in entry.receipts]
            answer.executors |= {NodeId(receipt["node_id"]) for receipt in signed if receipt["lane"] == 0}
            answer.lanes = max(answer.lanes, *(receipt["lane"] + 1 for receipt in signed))
        return answer

    async def ask_at_once(self, count: int) -> Sequence[Answer]:
        return await asyncio.gather(*(self.ask() for _ in range(count)))

    async def all_are_ready(self) -> bool:
        nodes = NodeList.model_validate_json((await self._http.get(f"{self._coordinator}/nodes")).content).nodes
        return [node.state for node in nodes] == [NodeState.READY] * WORKERS

    async def changes(self) -> float:
        """Of pipelines, for a gain, as the partitioner tells Prometheus."""
        text = (await self._http.get(f"{self._partitioner}/metrics")).text
        name = 'butterfly_pipelines_changed_total{reason="gain"} '
        return sum(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))

    async def aclose(self) -> None:
        await self._http.aclose()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await condition():  # noqa: ASYNC110  of other processes
            await asyncio.sleep(0.02)


async def test_a_node_that_joins_makes_a_second_pipeline_for_the_sessions_that_follow(
    cluster: SyntheticCluster,
) -> None:
    clients = make_clients(cluster.redis_url)
    registry = RedisTaskRegistry(clients, allow_weak_durability=True)
    asking = Asking(cluster, registry, RedisReceiptStore(clients))
    try:
        await until(asking.all_are_ready)
        before = await asking.ask_at_once(6)
        assert {answer.executors for answer in before} == {before[0].executors}
        changes = await asking.changes()
        cluster.start_worker(WORKERS)
        while_joining: list[Answer] = []
        async with asyncio.timeout(LIMIT_S):
            while await asking.changes() == changes:
                while_joining += await asking.ask_at_once(4)
        after = await asking.ask_at_once(8)
    finally:
        await asking.aclose()
        await registry.aclose()
    assert {epoch for answer in (*before, *while_joining, *after) for epoch in answer.epochs} == {1}
    assert {answer.lanes for answer in after} == {2}
    one, other = {answer.executors for answer in after}
    assert len(one) == len(other) == 3
    assert one.isdisjoint(other)
