"""What every service answers, over a real server."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from shared.domain.errors import NoCapacity, PeerUnavailable
from shared.resilience.context import current_deadline
from shared.runtime.app import make_app
from tests.integration.runtime.served import served


class Number(BaseModel):
    value: int


def example_router() -> APIRouter:
    router = APIRouter()

    @router.post("/numbers")
    async def echo(body: Number) -> Number:
        return body

    @router.get("/defect")
    async def defect() -> Number:
        raise RuntimeError("secret detail")

    @router.get("/refused")
    async def refused() -> Number:
        raise NoCapacity("no node has room", retry_after_s=2.5)

    @router.get("/deadline")
    async def deadline(request: Request) -> dict[str, bool]:
        return {"same": request.state.deadline == current_deadline.get(), "given": request.state.deadline is not None}

    @router.get("/trusted")
    async def trusted(request: Request) -> dict[str, bool]:
        return {"is_trusted": request.state.is_trusted}

    @router.post("/links")
    async def link(request: Request) -> dict[str, int]:
        return {"size": sum([len(chunk) async for chunk in request.stream()])}

    @router.get("/broken")
    async def broken() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("in the middle")

        return StreamingResponse(body())

    return router


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(
        "example",
        routers=[example_router()],
        service_token="token",
        public_paths=("/trusted",),
        max_body_bytes=1_000,
        body_limits={"/links": None},
    )
    headers = {"X-Butterfly-Service-Token": "token"}
    async with served(app) as url, httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        yield client


async def test_every_refusal_is_a_problem_with_its_status_and_code(client: httpx.AsyncClient) -> None:
    json_type = {"Content-Type": "application/json"}
    cases = [
        (await client.post("/numbers", content=b"{", headers=json_type), 400, "invalid_json"),
        (await client.post("/numbers", content=b"\xff", headers=json_type), 400, "invalid_json"),
        (await client.post("/numbers", content=b"[" * 900, headers=json_type), 400, "invalid_json"),
        (await client.post("/numbers", content=b"", headers=json_type), 400, "invalid_json"),
        (await client.post("/numbers", json={"value": "x"}), 422, "validation_failed"),
        (await client.post("/numbers", content=b'{"value": 1}'), 415, "unsupported_media_type"),
        (await client.get("/nowhere"), 404, "unknown_url"),
        (await client.get("/numbers/"), 404, "unknown_url"),
        (await client.get("/numbers"), 405, "method_not_allowed"),
        (await client.get("/refused"), 503, "no_capacity"),
        (await client.get("/defect"), 500, "internal_error"),
    ]
    for answer, status, code in cases:
        body = answer.json()
        assert (answer.status_code, body["code"], body["status"]) == (status, code, status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "detail" in body
        assert body["request_id"] == answer.headers["x-request-id"]


async def test_a_validation_problem_names_the_fields_but_not_their_values(client: httpx.AsyncClient) -> None:
    answer = await client.post("/numbers", json={"value": "hunter2"})
    assert [error["path"] for error in answer.json()["errors"]] == ["value"]
    assert "hunter2" not in answer.text


async def test_a_refusal_that_may_pass_says_when_to_come_back(client: httpx.AsyncClient) -> None:
    assert (await client.get("/refused")).headers["retry-after"] == "3"


async def test_a_defect_tells_no_detail(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    answer = await client.get("/defect")
    assert "secret" not in answer.text
    assert [record.message for record in caplog.records if record.name.startswith("shared")] == ["request_failed"]


async def test_the_wrong_method_is_told_the_right_ones(client: httpx.AsyncClient) -> None:
    assert (await client.get("/numbers")).headers["allow"] == "POST"


async def half_sent(url: str, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request whose body lacks its last two bytes."""
    reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n"
    writer.write(head.encode() + b'{"value": ')
    return reader, writer


async def test_a_body_that_does_not_arrive_in_time_is_refused_but_a_link_may_wait() -> None:
    app = make_app("example", routers=[example_router()], body_limits={"/links": None}, arrival_limit_s=0.05)
    async with served(app) as url:
        link_reader, link_writer = await half_sent(url, "/links")
        reader, writer = await half_sent(url, "/numbers")
        refused = await reader.read()  # to the end: the server hangs up
        assert refused.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in refused
        link_writer.write(b"7}")
        assert (await link_reader.readline()).startswith(b"HTTP/1.1 200 ")
        for each in (writer, link_writer):
            each.close()


async def test_a_request_id_is_taken_over_if_it_is_harmless_else_made(client: httpx.AsyncClient) -> None:
    given = await client.get("/livez", headers={"X-Request-Id": "a.b-c_1"})
    assert given.headers["x-request-id"] == "a.b-c_1"
    for bad in ("a b", "x" * 129, "a\tb"):
        made = (await client.get("/livez", headers={"X-Request-Id": bad})).headers["x-request-id"]
        assert made != bad
        assert len(made) == 32


async def test_the_deadline_header_reaches_the_route(client: httpx.AsyncClient) -> None:
    answer = await client.get("/deadline", headers={"X-Butterfly-Deadline-Ms": "5000"})
    assert answer.json() == {"same": True, "given": True}
    assert (await client.get("/deadline")).json() == {"same": True, "given": False}


async def test_a_deadline_that_has_passed_is_answered_at_once(client: httpx.AsyncClient) -> None:
    answer = await client.get("/deadline", headers={"X-Butterfly-Deadline-Ms": "0"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    bad = await client.get("/deadline", headers={"X-Butterfly-Deadline-Ms": "soon"})
    assert bad.status_code == 422


async def test_paths_need_the_service_token_unless_they_are_public(client: httpx.AsyncClient) -> None:
    wrong = {"X-Butterfly-Service-Token": "guess"}
    refused = await client.get("/deadline", headers=wrong)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    for path in ("/livez", "/readyz", "/startupz", "/metrics"):
        assert (await client.get(path, headers=wrong)).status_code == 200
    assert (await client.get("/trusted", headers=wrong)).json() == {"is_trusted": False}
    assert (await client.get("/trusted")).json() == {"is_trusted": True}


async def chunks(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


async def test_bodies_are_bounded_with_and_without_their_length(client: httpx.AsyncClient) -> None:
    for content in (b"x" * 1_001, chunks(11, 100)):
        headers = {"Content-Type": "application/json"}
        answer = await client.post("/numbers", content=content, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    fits = json.dumps({"value": 1}).encode().ljust(1_000)
    answer = await client.post("/numbers", content=fits, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


async def test_a_link_may_be_as_long_as_it_likes(client: httpx.AsyncClient) -> None:
    assert (await client.post("/links", content=chunks(50, 100))).json() == {"size": 5_000}


async def test_an_answer_that_breaks_half_way_does_not_end_cleanly(client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await client.get("/broken")


async def test_probes_answer_head_and_say_who_they_are(client: httpx.AsyncClient) -> None:
    assert (await client.head("/livez")).status_code == 200
    alive = (await client.get("/livez")).json()
    assert (alive["status"], alive["service"]) == ("alive", "example")
    assert (await client.get("/startupz")).json() == {"status": "started"}


async def test_http_series_leave_probes_out_and_group_unknown_paths(client: httpx.AsyncClient) -> None:
    await client.post("/numbers", json={"value": 1})
    await client.get("/livez")
    await client.get("/nowhere/17")
    text = (await client.get("/metrics")).text
    assert 'http_requests_total{handler="/numbers",method="POST",status="200"} 1.0' in text
    assert "livez" not in text
    assert "nowhere" not in text
    assert 'butterfly_build_info{service="example"' in text


async def test_a_service_is_ready_when_its_dependencies_are_and_not_while_draining() -> None:
    is_up = asyncio.Event()
    reached = asyncio.Event()

    async def dependency() -> None:
        if not is_up.is_set():
            raise PeerUnavailable("coordinator cannot be reached")
        reached.set()

    app = make_app("example", routers=[], readiness={"coordinator": dependency})
    async with served(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        starting = await client.get("/readyz")
        assert starting.status_code == 503
        assert starting.json()["checks"]["coordinator"]["error"] == "coordinator cannot be reached"
        is_up.set()
        await reached.wait()
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        app.state.draining.set()
        draining = await client.get("/readyz")
        assert (draining.status_code, draining.json()["status"]) == (503, "draining")
