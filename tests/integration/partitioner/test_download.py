"""A worker's download over a real connection."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.partitioner.app import create_app
from shared.contracts.partitioner import StageFileInfo
from shared.llama.cutting import stage_digest_of
from shared.runtime.config import Config, PartitionConfig, ServicesConfig
from tests.integration.runtime.served import served

STAGE = "/models/demo/stages/10-20"


@pytest.fixture
async def client(demo_model: Path, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    (tmp_path / "demo.gguf").symlink_to(demo_model)
    config = Config(
        partition=PartitionConfig(models_dir=tmp_path),
        services=ServicesConfig(metrics_url="http://127.0.0.1:9"),  # nobody listens: events are dropped and counted
    )
    async with served(create_app(config)) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
        while (await http.get("/models/demo")).status_code == 503:  # noqa: ASYNC110  a caller has only the answer
            await asyncio.sleep(0.01)
        yield http


async def test_a_download_that_was_cut_off_goes_on_where_it_ended(client: httpx.AsyncClient, tmp_path: Path) -> None:
    info = StageFileInfo.model_validate_json((await client.get(f"{STAGE}/info")).content)
    path = tmp_path / "fetched"
    with path.open("wb") as file:
        async with client.stream("GET", STAGE) as answer:
            async for chunk in answer.aiter_raw():
                file.write(chunk)
                if file.tell() > info.size_bytes // 3:
                    break  # the connection is closed with most of the file unread
        have = file.tell()
        headers = {"Range": f"bytes={have}-", "If-Range": answer.headers["ETag"]}
        async with client.stream("GET", STAGE, headers=headers) as answer:
            assert answer.status_code == 206
            async for chunk in answer.aiter_raw():
                file.write(chunk)
    assert info.size_bytes // 3 < have < info.size_bytes
    assert path.stat().st_size == info.size_bytes
    assert stage_digest_of(path) == info.stage_digest


async def test_other_requests_are_answered_during_a_slow_download(client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/models/demo/stages/0-30") as slow:
        chunks = slow.aiter_raw()
        received = len(await anext(chunks))
        for _ in range(5):
            assert (await client.get("/livez")).status_code == 200
        async for chunk in chunks:
            received += len(chunk)
    assert received == int(slow.headers["Content-Length"])
