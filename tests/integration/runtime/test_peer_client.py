"""Calls between services, over a real server."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from shared.contracts.problem import Ack
from shared.domain.deadline import Deadline
from shared.domain.errors import (
    CircuitOpen,
    DeadlineExceeded,
    NoCapacity,
    PeerUnavailable,
    ProtocolViolation,
    ServerDraining,
    UnknownUrl,
)
from shared.resilience import http_client
from shared.resilience.breaker import BreakerPolicy
from shared.resilience.context import current_request_id
from shared.resilience.hooks import BytesSent, PeerHooks, PoolRebuilt, Retried
from shared.resilience.http_client import PeerClient, PeerClients
from shared.resilience.retry import RetryPolicy
from shared.runtime.app import make_app
from tests.integration.runtime.served import served


class Number(BaseModel):
    value: int


class Peer:
    """A service that answers as it is told, and remembers what it got."""

    def __init__(self) -> None:
        self.calls = 0
        self._changed = asyncio.Condition()
        self.failures_left = 0
        self.headers: dict[str, str] = {}
        self.release = asyncio.Event()
        self.uploaded = bytearray()

    def app(self) -> FastAPI:
        router = APIRouter()

        @router.post("/numbers")
        async def echo(body: Number, request: Request) -> Number:
            await self._count(request)
            return body

        @router.post("/nothing")
        async def nothing(request: Request) -> Response:
            await self._count(request)
            return Response(status_code=204, headers={"Set-Cookie": "a=b"})

        @router.get("/slow")
        async def slow(request: Request) -> Ack:
            await self._count(request)
            await self.release.wait()
            return Ack()

        @router.get("/trickle")
        async def trickle() -> StreamingResponse:
            return StreamingResponse(endless())

        @router.get("/capacity")
        async def capacity(request: Request) -> Ack:
            await self._count(request)
            raise NoCapacity("no node has room", retry_after_s=2.0)

        @router.get("/file")
        async def file(request: Request) -> Response:
            await self._count(request)
            start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
            return Response(FILE[start:], 206)

        @router.post("/links")
        async def link(request: Request) -> Response:
            await self._count(request)
            async for chunk in request.stream():
                self.uploaded += chunk
            return Response()

        @router.get("/lines")
        async def lines() -> StreamingResponse:
            return StreamingResponse(iter(["a\n", "b\n\n"]))

        return make_app("peer", routers=[router], body_limits={"/links": None})

    async def called(self, times: int) -> None:
        """Until that many calls have come in."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.calls >= times)

    async def _count(self, request: Request) -> None:
        self.calls += 1
        async with self._changed:
            self._changed.notify_all()
        self.headers = dict(request.headers)
        if self.failures_left:
            self.failures_left -= 1
            raise ServerDraining("going down")


FILE = bytes(range(256)) * 40


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b" " * 1_000
        await asyncio.sleep(0.001)


class Heard:
    def __init__(self) -> None:
        self.details: list[object] = []
        self.hooks = PeerHooks(
            breaker_changed=self.details.append,
            retried=self.details.append,
            bytes_sent=self.details.append,
            pool_rebuilt=self.details.append,
        )

    def of(self, kind: type) -> list[object]:
        return [details for details in self.details if isinstance(details, kind)]


def client_of(
    url: str,
    *,
    hooks: PeerHooks | None = None,
    max_connections: int = 100,
    now: Callable[[], float] = time.monotonic,
) -> PeerClient:
    return PeerClient(
        name="partitioner",
        base_url=url,
        service_token="token",
        hooks=hooks or PeerHooks(),
        now=now,
        max_response_bytes=100_000,
        max_connections=max_connections,
        retry=RetryPolicy(base_s=0.001),
        breaker=BreakerPolicy(failure_threshold=3),
        rng=random.Random(1),
    )


@pytest.fixture
async def peer() -> Peer:
    return Peer()


@pytest.fixture
async def client(peer: Peer) -> AsyncIterator[PeerClient]:
    async with served(peer.app()) as url:
        client = client_of(url)
        yield client
        peer.release.set()
        await client.aclose()


async def test_a_call_goes_out_and_comes_back_typed(client: PeerClient, peer: Peer) -> None:
    token = current_request_id.set("r-1")
    assert await client.post("/numbers", Number(value=7), Number, bearer="key") == Number(value=7)
    current_request_id.reset(token)
    assert peer.headers["x-butterfly-service-token"] == "token"
    assert peer.headers["authorization"] == "Bearer key"
    assert peer.headers["x-request-id"] == "r-1"
    assert await client.post("/nothing", None, Ack) == Ack()


async def test_a_refusal_comes_back_as_the_same_error(client: PeerClient) -> None:
    with pytest.raises(NoCapacity) as caught:
        await client.get("/capacity", Ack)
    assert (caught.value.message, caught.value.retry_after_s) == ("no node has room", 2.0)
    with pytest.raises(UnknownUrl):
        await client.get("/nowhere", Ack)


async def test_refusals_never_open_the_circuit(client: PeerClient) -> None:
    for _ in range(10):
        with pytest.raises(NoCapacity):
            await client.get("/capacity", Ack)
    assert await client.breaker_state("control") == "closed"


async def test_an_idempotent_call_is_retried_and_told(peer: Peer) -> None:
    heard = Heard()
    async with served(peer.app()) as url:
        client = client_of(url, hooks=heard.hooks)
        peer.failures_left = 2
        assert await client.post("/numbers", Number(value=1), Number, idempotent=True) == Number(value=1)
        assert peer.calls == 3
        assert len(heard.of(Retried)) == 2
        assert len(heard.of(BytesSent)) == 3
        await client.aclose()


async def test_a_call_that_is_not_idempotent_is_tried_once(client: PeerClient, peer: Peer) -> None:
    peer.failures_left = 1
    with pytest.raises(ServerDraining):
        await client.post("/numbers", Number(value=1), Number)
    assert peer.calls == 1


async def test_failures_open_the_circuit_and_another_incarnation_closes_it(client: PeerClient, peer: Peer) -> None:
    peer.failures_left = 3
    for _ in range(3):
        with pytest.raises(ServerDraining):
            await client.post("/numbers", Number(value=1), Number)
    with pytest.raises(CircuitOpen, match=r"partitioner \(control\)"):
        await client.post("/numbers", Number(value=1), Number)
    assert peer.calls == 3
    await client.check()
    assert await client.post("/numbers", Number(value=1), Number) == Number(value=1)


async def test_a_peer_that_answers_again_is_asked_again_before_the_circuit_would_let_it(
    client: PeerClient, peer: Peer
) -> None:
    peer.failures_left = 3
    for _ in range(3):
        with pytest.raises(ServerDraining):
            await client.post("/numbers", Number(value=1), Number)
    async with asyncio.timeout(5):  # the circuit would stay open for a minute
        while peer.calls == 3:
            with suppress(CircuitOpen):
                assert await client.post("/numbers", Number(value=1), Number) == Number(value=1)
            await asyncio.sleep(0.01)


class Away:
    """Takes connections and closes them."""

    def __init__(self) -> None:
        self.connections = 0

    def take(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


async def one_chunk() -> AsyncIterator[bytes]:
    yield b"x"


async def call(client: PeerClient) -> None:
    await client.post("/numbers", Number(value=1), Number)


async def link(client: PeerClient) -> None:
    await client.stream_post("/links", one_chunk())


async def download(client: PeerClient) -> None:
    async for _ in client.download("/file"):
        pass


@pytest.mark.parametrize("ask", [call, link, download])
async def test_a_peer_that_stays_away_is_looked_for_once_a_second_and_stays_turned_away(
    ask: Callable[[PeerClient], Awaitable[None]],
) -> None:
    away, now_s = Away(), 0.0
    async with await asyncio.start_server(away.take, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        client = client_of(f"http://{host}:{port}", now=lambda: now_s)
        for _ in range(3):
            with pytest.raises(PeerUnavailable):
                await ask(client)
        before = away.connections
        for second in range(1, 4):
            now_s += http_client.LOOK_EVERY_S
            for _ in range(20):
                with pytest.raises(CircuitOpen):
                    await ask(client)
            async with asyncio.timeout(5):
                while away.connections < before + second:  # noqa: ASYNC110  only the server sees it
                    await asyncio.sleep(0.005)
        assert away.connections == before + 3
        await client.aclose()


async def test_the_deadline_travels_a_little_shortened(client: PeerClient, peer: Peer) -> None:
    deadline = Deadline.after(1.0, now_s=time.monotonic())
    await client.post("/numbers", Number(value=1), Number, deadline=deadline)
    assert 500 < int(peer.headers["x-butterfly-deadline-ms"]) <= 995


async def test_a_spent_deadline_is_not_sent_at_all(client: PeerClient, peer: Peer) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.get("/slow", Ack, deadline=Deadline.after(0.004, now_s=time.monotonic()))
    assert peer.calls == 0


async def test_waiting_ends_with_the_own_deadline_and_says_nothing_of_the_peer(client: PeerClient) -> None:
    for _ in range(4):
        with pytest.raises(DeadlineExceeded):
            await client.get("/slow", Ack, deadline=Deadline.after(0.03, now_s=time.monotonic()))
    assert await client.breaker_state("control") == "closed"


async def test_a_peer_that_trickles_is_cut_off_by_size_and_by_time(client: PeerClient) -> None:
    with pytest.raises(ProtocolViolation, match="more than 100000 bytes"):
        await client.get("/trickle", Ack, timeout_s=5.0)
    with pytest.raises(PeerUnavailable, match="in time"):
        await client.get("/trickle", Ack, timeout_s=0.02)


@asynccontextmanager
async def trickling_head() -> AsyncIterator[str]:
    """The URL of a server that sends the head of its answer byte by byte, without an end, to one caller."""
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _ = await reader.read(1_000)
        writer.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
        with suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        ended.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await ended.wait()


async def test_a_peer_whose_answer_never_begins_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "OVERTIME_S", 0.1)
    async with trickling_head() as url:
        client = client_of(url)
        began_s = time.monotonic()
        with pytest.raises(PeerUnavailable):
            await client.post("/numbers", Number(value=1), Number, timeout_s=0.1)
        assert time.monotonic() - began_s < 5.0
        await client.aclose()


async def test_a_peer_cannot_have_anything_kept_by_its_callers(client: PeerClient, peer: Peer) -> None:
    await client.post("/nothing", None, Ack)
    await client.post("/numbers", Number(value=1), Number)
    assert "cookie" not in peer.headers


async def test_an_answer_that_breaks_the_contract_is_a_violation(client: PeerClient) -> None:
    with pytest.raises(ProtocolViolation, match="breaks the contract"):
        await client.post("/numbers", Number(value=1), Ack)


async def test_a_peer_that_is_not_there_is_named_and_nothing_secret_is_said() -> None:
    client = client_of("http://127.0.0.1:1")
    with pytest.raises(PeerUnavailable, match="partitioner cannot be reached") as caught:
        await client.get("/numbers", Ack)
    assert "token" not in str(caught.value)
    with pytest.raises(PeerUnavailable):
        await client.check()
    await client.aclose()


async def test_callers_cancelled_at_any_moment_leave_every_connection_usable(peer: Peer) -> None:
    """Cancelled between "assigned" and "connected", a call of httpx alone would keep its place in the pool for ever."""
    async with served(peer.app()) as url:
        client = client_of(url, max_connections=2)
        for steps in range(40):
            caller = asyncio.create_task(client.post("/numbers", Number(value=1), Number))
            for _ in range(steps % 20):
                await asyncio.sleep(0)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
        for _ in range(4):
            assert await client.post("/numbers", Number(value=1), Number) == Number(value=1)
        await client.aclose()


async def test_an_abandoned_call_still_ends_and_its_answer_counts(peer: Peer) -> None:
    async with served(peer.app()) as url:
        heard = Heard()
        client = client_of(url, hooks=heard.hooks)
        caller = asyncio.create_task(client.get("/slow", Ack))
        await peer.called(1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        peer.release.set()
        await client.get("/slow", Ack)
        assert len(heard.of(BytesSent)) == 2
        await client.aclose()


async def test_after_three_waits_for_a_connection_in_vain_the_pool_is_made_anew(peer: Peer) -> None:
    heard = Heard()
    async with served(peer.app()) as url:
        client = client_of(url, hooks=heard.hooks, max_connections=1)
        holder = asyncio.create_task(client.get("/slow", Ack, timeout_s=5.0))
        await peer.called(1)
        for _ in range(3):
            with pytest.raises(PeerUnavailable, match="no free connection"):
                await client.post("/numbers", Number(value=1), Number, timeout_s=0.02)
        assert heard.of(PoolRebuilt) == [PoolRebuilt("partitioner")]
        assert await client.post("/numbers", Number(value=1), Number) == Number(value=1)
        peer.release.set()
        assert await holder == Ack()
        await client.aclose()


async def test_a_download_goes_on_from_where_it_stopped(client: PeerClient) -> None:
    whole = b"".join([chunk async for chunk in client.download("/file")])
    rest = b"".join([chunk async for chunk in client.download("/file", start=100)])
    assert whole == FILE
    assert rest == FILE[100:]


async def test_a_download_of_nothing_raises_the_peers_error(client: PeerClient) -> None:
    with pytest.raises(UnknownUrl):
        _ = [chunk async for chunk in client.download("/nowhere")]


async def test_a_link_uploads_until_its_chunks_end(client: PeerClient, peer: Peer) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(5):
            yield bytes([number]) * 1_000

    await client.stream_post("/links", chunks(), bearer="link", headers={"X-From": "n1"})
    assert len(peer.uploaded) == 5_000
    assert (peer.headers["authorization"], peer.headers["x-from"]) == ("Bearer link", "n1")


async def test_a_link_to_a_peer_that_is_gone_raises(client: PeerClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"

    gone = client_of("http://127.0.0.1:1")
    with pytest.raises(PeerUnavailable):
        await gone.stream_post("/links", chunks())
    await gone.aclose()


async def test_lines_come_one_by_one(client: PeerClient) -> None:
    assert [line async for line in client.stream_lines("/lines")] == ["a", "b", ""]


async def test_the_service_token_is_shown_to_known_services_alone(peer: Peer) -> None:
    async with served(peer.app()) as url:
        for trusted in ((), (url,)):
            clients = PeerClients(hooks=PeerHooks(), now=time.monotonic, service_token="token", trusted_urls=trusted)
            await clients.get("worker", url).post("/numbers", Number(value=1), Number)
            assert ("x-butterfly-service-token" in peer.headers) is bool(trusted)
            await clients.aclose()


async def test_a_pool_of_clients_keeps_one_per_peer_and_forgets_on_demand() -> None:
    clients = PeerClients(hooks=PeerHooks(), now=time.monotonic)
    one = clients.get("n1", "http://127.0.0.1:1")
    assert clients.get("n1", "http://127.0.0.1:1") is one
    await clients.forget("n1")
    with pytest.raises(PeerUnavailable):
        await one.get("/x", Ack)
    assert clients.get("n1", "http://127.0.0.1:1") is not one
    await clients.aclose()
