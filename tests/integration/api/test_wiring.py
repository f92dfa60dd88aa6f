"""The gateway as `create_app` joins it: over HTTP to its peers, over a real Redis-compatible server to the tasks."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import APIRouter, FastAPI
from pydantic import SecretStr
from starlette.responses import Response, StreamingResponse

from services.api.app import create_app
from shared.contracts.base import Empty
from shared.contracts.coordinator import NodeList
from shared.contracts.partitioner import ModelList
from shared.contracts.scheduler import CancelReply, QueueState, RenewAttachments, SubmitTask, Submitted
from shared.domain.ids import ModelId, TaskId
from shared.domain.task import FinishReason, TokenRecord
from shared.llama.cutting import open_model, vocabulary_file
from shared.llama.library import load_library
from shared.llama.vocabulary import Vocabulary
from shared.registry.redis_registry import connect_registry
from shared.runtime.app import make_app
from shared.runtime.config import ApiConfig, Config, ConfigError, RedisConfig, SecurityConfig, ServicesConfig
from tests.fakes.catalogue import BYTE_MODEL, node_view
from tests.fakes.scheduler import Conductor, FakeScheduler
from tests.fakes.valkey import running_valkey
from tests.integration.api.conftest import until

MODEL = replace(BYTE_MODEL, model_id=ModelId("smollm2-135m"))


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with running_valkey() as server:
        yield server.url


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The app's URL while it runs on a free port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


def control_plane(scheduler: FakeScheduler, model_file: Path) -> FastAPI:
    """Everybody the gateway calls, in one process, behind the service token."""
    router = APIRouter()
    vocabulary = vocabulary_file(open_model(model_file))

    @router.post("/tasks")
    async def submit(body: SubmitTask) -> Submitted:
        return await scheduler.submit(body)

    @router.post("/tasks/{task_id}/cancel")
    async def cancel(task_id: str) -> CancelReply:
        return await scheduler.cancel(TaskId(task_id))

    @router.post("/attachments")
    async def renew(body: RenewAttachments) -> Empty:
        await scheduler.renew(body.task_ids)
        return Empty()

    @router.get("/state")
    async def state() -> QueueState:
        return await scheduler.queue()

    @router.get("/models")
    async def models() -> ModelList:
        return ModelList(models=(MODEL,))

    @router.get("/models/{model_id}/vocabulary")
    async def vocabulary_bytes(model_id: str) -> Response:
        return StreamingResponse(vocabulary.read(0, vocabulary.size_bytes))

    @router.get("/nodes")
    async def nodes() -> NodeList:
        return NodeList(nodes=(node_view(),))

    return make_app("control", routers=[router], service_token="secret")


def config(redis_url: str, control_url: str, *, service_token: str = "secret") -> Config:
    services = ServicesConfig(
        scheduler_url=control_url,
        partitioner_url=control_url,
        coordinator_url=control_url,
        metrics_url=control_url,
    )
    return Config(
        api=ApiConfig(bind_address="127.0.0.1:0"),
        redis=RedisConfig(url=SecretStr(redis_url), allow_weak_durability=True),
        services=services,
        security=SecurityConfig(service_token=SecretStr(service_token)),
    )


async def test_a_chat_goes_through_all_of_it(redis_url: str, demo_model: Path) -> None:
    registry = connect_registry(redis_url, allow_weak_durability=True)
    scheduler, conductor = FakeScheduler(registry), Conductor(registry)
    vocabulary = Vocabulary(load_library(), demo_model)
    answer_ids = vocabulary.tokenize("A 🦋!", add_special=False, parse_special=False)
    async with (
        served(control_plane(scheduler, demo_model)) as control_url,
        served(create_app(config(redis_url, control_url))) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client,
    ):
        body = {"model": MODEL.model_id, "messages": [{"role": "user", "content": "Hi"}]}
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await until(lambda: bool(scheduler.submissions), limit_s=15)
        task = scheduler.submissions[0].task
        prompt = b"".join(vocabulary.piece(token_id, special=True) for token_id in task.prompt_ids).decode()
        assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
        await conductor.start(task.task_id)
        for token_id in answer_ids:
            await conductor.commit(task.task_id, [TokenRecord(token_id, 1.0, other_id=0, other_logit=0.0)])
        await conductor.finish(task.task_id, FinishReason.LENGTH)
        (choice,) = (await asking).json()["choices"]
        assert choice["message"]["content"] == "A 🦋!"
        assert choice["finish_reason"] == "length"

        async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
            assert response.status_code == 200
            left = scheduler.submissions[1].task.task_id
        await until(lambda: scheduler.cancelled == [left], limit_s=1)

        state = (await client.get("/v1/state")).json()
        assert {name: each["ready"] for name, each in state["services"].items()} == dict.fromkeys(
            ("api", "scheduler", "partitioner", "coordinator", "metrics"), True
        )
        assert [node["node_id"] for node in state["nodes"]] == ["node-a"]
        assert (await client.get("/readyz")).status_code == 200
        task_list = (await client.get("/v1/tasks")).json()
        assert [each["status"] for each in task_list["data"]] == ["cancelled", "completed"]
    await registry.aclose()
    vocabulary.close()


async def test_a_client_does_not_pay_for_a_wrong_service_token(redis_url: str, demo_model: Path) -> None:
    registry = connect_registry(redis_url, allow_weak_durability=True)
    async with (
        served(control_plane(FakeScheduler(registry), demo_model)) as control_url,
        served(create_app(config(redis_url, control_url, service_token="other"))) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client,
    ):
        answer = await client.get("/v1/nodes")
        assert (answer.status_code, answer.json()["code"]) == (503, "peer_unavailable")
        assert "www-authenticate" not in answer.headers
    await registry.aclose()


def test_a_gateway_without_redis_does_not_start() -> None:
    with pytest.raises(ConfigError, match=r"redis\.url"):
        create_app(Config())
