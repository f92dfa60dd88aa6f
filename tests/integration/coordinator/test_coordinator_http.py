"""The coordinator as a served app: real HTTP to a worker and a partitioner, the real registry on a real Valkey."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from services.coordinator.app import create_app
from services.coordinator.stores.coordinator_key import load_coordinator_key
from shared.contracts.coordinator import OpenSession, RegisterNode
from shared.contracts.messages import Draft, DraftTokens, Heartbeat, Leave, SessionStop
from shared.domain.ids import Epoch, NodeId
from shared.domain.task import FinishReason, InferenceTask, StopRules
from shared.domain.task_state import TERMINAL, TaskState
from shared.registry.base import TaskRecord
from shared.registry.redis_registry import RedisTaskRegistry, connect_registry
from shared.resilience.context import SERVICE_TOKEN_HEADER
from shared.runtime.config import Config, load_config
from tests.fakes.identities import KEYS, N1, N2, N3, N9, capability, registration
from tests.fakes.partitioner import even_plan
from tests.fakes.tasks import make_task, make_tokens
from tests.fakes.valkey import ValkeyServer, running_valkey
from tests.integration.coordinator.peers import WorkerServer, running_partitioner, running_worker
from tests.integration.runtime.served import served

JSON = {"Content-Type": "application/json"}
TRUSTED = {SERVICE_TOKEN_HEADER: "service"}


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server


@dataclass
class Running:
    """A served coordinator and what stands around it."""

    http: httpx.AsyncClient
    registry: RedisTaskRegistry
    stack: AsyncExitStack
    workers: dict[str, WorkerServer] = field(default_factory=dict)
    node_tokens: dict[str, str] = field(default_factory=dict)

    async def join(self, name: str, *, boot_id: str = "boot-1") -> None:
        if name not in self.workers:
            self.workers[name] = await self.stack.enter_async_context(running_worker())
        worker = self.workers[name]
        node = joining(name, worker.address, boot_id=boot_id)
        answer = await self.http.post("/nodes", content=node.model_dump_json(), headers=bearer("join"))
        assert answer.status_code == 200, answer.text
        worker.token = answer.json()["coordinator_token"]
        self.node_tokens[name] = answer.json()["node_token"]

    async def say(self, name: str, message: DraftTokens | Heartbeat | Leave) -> httpx.Response:
        headers = bearer(self.node_tokens[name])
        return await self.http.post("/messages", content=message.model_dump_json(), headers=headers)

    async def open(self, task: InferenceTask, nodes: list[str]) -> httpx.Response:
        plan = even_plan(nodes)
        await self.registry.submit(
            task, idempotency_key=None, payload_hash="", attached=False, max_queue_size=10, max_queued_per_owner=10
        )
        (claim,) = await self.registry.claim(task.group, 1, owner="s", lease_s=60, plan_id=plan.plan_id)
        body = OpenSession(task_id=task.task_id, attempt=claim.attempt, plan=plan)
        return await self.http.post("/sessions", content=body.model_dump_json(), headers=TRUSTED)

    async def ended(self, task: InferenceTask) -> TaskRecord:
        """The task once it has ended, at most 10 s from now."""
        after = "0"
        async with asyncio.timeout(10):
            while (record := await self.registry.record(task.task_id)).state not in TERMINAL:
                found = await self.registry.read_streams({task.task_id: after}, block_s=1.0)
                after = found[task.task_id][-1].entry_id if found else after
        return record


def joining(name: str, address: str, *, boot_id: str = "boot-1") -> RegisterNode:
    return registration(capability(name), address, boot_id=boot_id, coordinator=Config().services.coordinator_url[0])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def drafts(task: InferenceTask, *token_ids: int, first: int = 0, epoch: int = 1) -> DraftTokens:
    position = len(task.prompt_ids) + first
    draft = Draft(task_id=task.task_id, epoch=Epoch(epoch), first_position=position, records=make_tokens(*token_ids))
    return DraftTokens(drafts=(draft,))


def config(valkey: ValkeyServer, partitioner_url: str, data_dir: Path) -> Config:
    return load_config(
        None,
        {
            "BUTTERFLY_REDIS__URL": valkey.url,
            "BUTTERFLY_SERVICES__PARTITIONER_URL": partitioner_url,
            "BUTTERFLY_SERVICES__METRICS_URL": "http://127.0.0.1:9",
            "BUTTERFLY_SECURITY__SERVICE_TOKEN": "service",
            "BUTTERFLY_SECURITY__JOIN_TOKEN": "join",
            "BUTTERFLY_COORDINATION__LEASE_MS": "60000",
            "BUTTERFLY_COORDINATION__DATA_DIR": str(data_dir),
        },
    )


@pytest.fixture
async def running(valkey: ValkeyServer, tmp_path: Path) -> AsyncIterator[Running]:
    valkey.empty()
    async with AsyncExitStack() as stack:
        partitioner_url = await stack.enter_async_context(running_partitioner())
        registry = connect_registry(valkey.url, allow_weak_durability=False)
        stack.push_async_callback(registry.aclose)
        url = await stack.enter_async_context(served(create_app(config(valkey, partitioner_url, tmp_path))))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, trust_env=False, headers=JSON))
        everything = Running(http, registry, stack)
        for name in (N1, N2):
            await everything.join(name)
        yield everything


async def test_a_task_runs_from_its_opening_to_its_result(running: Running) -> None:
    task = make_task(max_tokens=20, stop=StopRules(strings=("END",)))
    assert (await running.open(task, [N1, N2])).status_code == 202
    await running.workers[N1].started(task.task_id)
    assert (await running.workers[N2].assignment(task.task_id)).stage == 1

    assert (await running.say(N2, drafts(task, *b"abEN"))).status_code == 200
    assert (await running.say(N2, drafts(task, *b"Dxx", first=4))).status_code == 200
    record = await running.ended(task)

    assert (record.state, record.finish_reason) == (TaskState.COMPLETED, FinishReason.STOP)
    assert bytes(token.token_id for token in await running.registry.tokens(task.task_id)) == b"abEND"
    for worker in running.workers.values():
        await worker.wait_for(lambda told: isinstance(told, SessionStop))
        assert worker.refused == 0


async def test_a_worker_never_sees_the_service_token(running: Running) -> None:
    task = make_task()
    await running.open(task, [N1, N2])
    await running.workers[N1].started(task.task_id)
    seen = [name for worker in running.workers.values() for headers in worker.headers for name in headers]
    assert seen
    assert SERVICE_TOKEN_HEADER.lower() not in seen


async def test_a_node_that_leaves_is_replaced_and_the_tokens_go_on(running: Running) -> None:
    await running.join(N3)
    task = make_task(max_tokens=4)
    await running.open(task, [N1, N2])
    await running.workers[N1].started(task.task_id)
    await running.say(N2, drafts(task, 10, 11))
    await running.say(N2, Leave(boot_id="boot-1"))

    order = await running.workers[N3].assignment(task.task_id, epoch=2)
    await running.workers[N1].started(task.task_id, epoch=2)
    known = len(order.prefix_ids) - len(task.prompt_ids)
    rest = (10, 11, 12, 13)[known:]
    assert (await running.say(N3, drafts(task, *rest, first=known, epoch=2))).status_code == 200
    assert (await running.ended(task)).state is TaskState.COMPLETED
    assert [token.token_id for token in await running.registry.tokens(task.task_id)] == [10, 11, 12, 13]


async def test_a_cancel_reaches_the_workers(running: Running) -> None:
    task = make_task()
    await running.open(task, [N1, N2])
    await running.workers[N1].started(task.task_id)
    await running.registry.cancel(task.task_id)
    answer = await running.http.post(f"/sessions/{task.task_id}/cancel", headers=TRUSTED)
    assert answer.status_code == 200
    for worker in running.workers.values():
        await worker.wait_for(lambda told: isinstance(told, SessionStop))


async def test_what_is_not_for_workers_needs_the_service_token(running: Running) -> None:
    for method, path in (
        ("GET", "/nodes"),
        ("POST", f"/nodes/{N1}/drain"),
        ("POST", f"/nodes/{N1}/resume"),
        ("POST", f"/nodes/{N1}/quarantine"),
        ("POST", f"/nodes/{N1}/reinstate"),
        ("POST", "/sessions"),
        ("POST", "/sessions/x/cancel"),
        ("POST", "/placements"),
        ("GET", "/state"),
    ):
        answer = await running.http.request(method, path, headers=bearer(running.node_tokens[N1]))
        assert answer.status_code == 401, path


async def test_nodes_and_state_are_shown_to_other_services(running: Running) -> None:
    await running.http.post(f"/nodes/{N2}/drain", headers=TRUSTED)
    nodes = (await running.http.get("/nodes", headers=TRUSTED)).json()["nodes"]
    assert [(node["node_id"], node["state"]) for node in nodes] == [(N1, "ready"), (N2, "draining")]
    state = (await running.http.get("/state", headers=TRUSTED)).json()
    assert state == {"sessions": 0, "nodes": {"ready": 1, "draining": 1}}


async def test_an_operator_quarantines_and_reinstates_a_node(running: Running) -> None:
    async def state() -> tuple[str, str]:
        nodes = (await running.http.get("/nodes", headers=TRUSTED)).json()["nodes"]
        return next((node["state"], node["reason"]) for node in nodes if node["node_id"] == N2)

    answer = await running.http.post(f"/nodes/{N2}/quarantine", content='{"reason":"odd"}', headers=TRUSTED)
    assert answer.status_code == 200
    assert await state() == ("quarantined", "odd")
    assert (await running.http.post(f"/nodes/{N2}/reinstate", headers=TRUSTED)).status_code == 200
    assert await state() == ("ready", "")
    assert (await running.http.post(f"/nodes/{N2}/reinstate", headers=TRUSTED)).status_code == 404
    assert (await running.http.post(f"/nodes/{N9}/quarantine", headers=TRUSTED)).status_code == 404


async def test_a_node_that_joins_for_another_coordinator_is_refused(running: Running) -> None:
    node = registration(capability(N9), "http://127.0.0.1:1", coordinator="http://elsewhere:8083")
    answer = await running.http.post("/nodes", content=node.model_dump_json(), headers=bearer("join"))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_value")
    assert "coordination.join_urls" in answer.json()["detail"]


async def test_a_coordinator_keeps_its_key(running: Running, tmp_path: Path) -> None:
    node = joining(N1, running.workers[N1].address)
    answer = await running.http.post("/nodes", content=node.model_dump_json(), headers=bearer("join"))
    key = load_coordinator_key(tmp_path)
    assert answer.json()["coordinator_key"] == key.public_key.hex()


async def test_bad_words_of_workers_get_a_code_each(running: Running) -> None:
    task = make_task()
    await running.open(task, [N1, N2])
    await running.workers[N1].started(task.task_id)

    async def refused(name: str, message: DraftTokens | Heartbeat) -> tuple[int, str]:
        answer = await running.say(name, message)
        return answer.status_code, answer.json()["code"]

    running.node_tokens["stranger"] = "made up"
    assert await refused("stranger", Heartbeat(boot_id="boot-1")) == (404, "node_not_found")
    assert await refused(N1, drafts(task, 10)) == (403, "forbidden")
    assert await refused(N2, drafts(task, 10, epoch=0)) == (412, "stale_epoch")
    assert await refused(N2, drafts(task, 10, epoch=9)) == (400, "protocol_violation")
    for content in (b"{", b'{"type":"shout"}', b'{"type":"heartbeat","boot_id":"b","extra":1}', b"[" * 100_000):
        answer = await running.http.post("/messages", content=content, headers=bearer(running.node_tokens[N1]))
        assert answer.status_code in {400, 422}, content[:40]
    listed = (await running.http.get("/nodes", headers=TRUSTED)).json()["nodes"]
    states = {node["node_id"]: node["state"] for node in listed}
    assert (states[N1], states[N2]) == ("quarantined", "ready")


async def test_a_wrong_join_token_is_refused(running: Running) -> None:
    node = joining(N9, "http://127.0.0.1:1")
    answer = await running.http.post("/nodes", content=node.model_dump_json(), headers=bearer("guess"))
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")


async def test_operators_get_the_public_keys_and_the_list_of_evidence(running: Running) -> None:
    keys = (await running.http.get("/keys", headers=TRUSTED)).json()
    assert keys["nodes"] == {node_id: KEYS[NodeId(node_id)].public_key.hex() for node_id in sorted(running.node_tokens)}
    assert len(bytes.fromhex(keys["coordinator"])) == 32
    assert (await running.http.get("/evidence", headers=TRUSTED)).json() == {"evidence": []}
    for path in ("/keys", "/evidence"):
        assert (await running.http.get(path, headers=bearer(running.node_tokens[N1]))).status_code == 401
