"""A partitioner of a tiny model, in this process, over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from services.partitioner.app import create_app
from shared.resilience.context import SERVICE_TOKEN_HEADER
from shared.runtime.config import Config, PartitionConfig, SecurityConfig, ServicesConfig
from tests.fakes.tiny_models import write_tiny_model

TOKEN = "control services only"


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path / "tiny.gguf", tied=False)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    return tmp_path


@asynccontextmanager
async def partitioner(models_dir: Path) -> AsyncIterator[httpx.AsyncClient]:
    """For a caller without the service token."""
    config = Config(
        partition=PartitionConfig(models_dir=models_dir, num_stages=2),
        security=SecurityConfig(service_token=SecretStr(TOKEN)),
        services=ServicesConfig(metrics_url="http://127.0.0.1:9"),  # nobody listens: events are dropped and counted
    )
    app = create_app(config)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://partitioner") as client,
    ):
        yield client


async def trusted(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """The same for a control service, once the catalogue is complete."""
    headers = {SERVICE_TOKEN_HEADER: TOKEN}
    await until_ready(client, "/models/tiny", headers)
    client.headers.update(headers)
    return client


@pytest.fixture
async def worker(models_dir: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with partitioner(models_dir) as client:
        yield client


@pytest.fixture
async def control(worker: httpx.AsyncClient) -> httpx.AsyncClient:
    return await trusted(worker)


async def until_ready(client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    """Asking without a break would starve the thread that reads the model's file."""
    while (await client.get(path, headers=headers)).status_code == 503:  # noqa: ASYNC110  a caller has only the answer
        await asyncio.sleep(0.01)


def nodes(count: int, **more: object) -> list[dict[str, object]]:
    shape = {"memory_bytes": 1 << 30, "speed": 1.0, "slots": 4, "context_tokens": 128}
    return [{"node_id": f"w{index}", **shape, **more} for index in range(count)]
