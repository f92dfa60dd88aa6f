"""Calls to another service: the only module that imports httpx.

One `PeerClient` per peer, so that a bad peer cannot starve good ones. Order of layers: retry(breaker(call)).
Time limits are httpx's own: a call cancelled from outside can leak a place of httpx's pool, so each call runs in a
task of its own, which a caller that goes away leaves behind to end by its limits.
"""

import asyncio
import math
import random
import statistics
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from shared.contracts.peer_state import BreakerState, PeerState, PoolView
from shared.domain.deadline import Deadline
from shared.domain.errors import (
    DeadlineExceeded,
    PeerUnavailable,
    ProtocolViolation,
)
from shared.resilience.breaker import BreakerPolicy, CircuitBreakers
from shared.resilience.context import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    SERVICE_TOKEN_HEADER,
    current_deadline,
    current_request_id,
)
from shared.resilience.hooks import BytesSent, PeerHooks, PoolRebuilt, Retried, tell
from shared.resilience.outcomes import CallFailed, failed_transport, outcome_of, refusal
from shared.resilience.pool import Connect, ConnectionPool, Lease
from shared.resilience.retry import Retrier, RetryPolicy, Sleep

T = TypeVar("T", bound=BaseModel)
Operation = Literal["control", "link", "stage_file"]

CONNECT_TIMEOUT_S = 1.0
LINK_WRITE_TIMEOUT_S = 5.0
OVERTIME_S = 1.0  # beyond a call's limit, which httpx keeps by itself unless the peer trickles
LINK_PROVEN_S = LINK_WRITE_TIMEOUT_S  # nothing comes back on a link: one that takes chunks for so long goes well
LINES_SILENCE_S = 30.0  # a server-sent stream says something at least every 10 s
HOP_ALLOWANCE_MS = 5  # a callee is told a little less than what is left: its answer has to travel
POOL_TIMEOUTS_TO_REBUILD = 3
LOOK_EVERY_S = 1.0
DURATIONS_KEPT = 32
MAX_RESPONSE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    path: str
    operation: Operation
    content: bytes | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    bearer: str | None = None
    timeout_s: float = 2.0
    deadline: Deadline | None = None

    def limit_s(self, now_s: float) -> float:
        """How long its caller waits."""
        return self.timeout_s if self.deadline is None else min(self.timeout_s, self.deadline.at_s - now_s)


_ALIVE_CALL = _Call("GET", "/livez", "control", timeout_s=1.0)


class PeerClient:
    """Typed calls to one peer.

    Without a `deadline` of its own, a call has that of the HTTP request being answered, if there is one. The peer is
    told how long it has: until then or until the call's `timeout_s`, whatever is sooner.

    Every call may raise: the domain error that the peer answered (by its code), `PeerUnavailable` (no answer),
    `CircuitOpen` (not asked: it failed before), `DeadlineExceeded` (own deadline), `ProtocolViolation` (an answer
    that breaks the contract). Calls may overlap and may be cancelled.
    """

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        service_token: str = "",
        hooks: PeerHooks,
        now: Callable[[], float],
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        max_connections: int = 100,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008  frozen
        breaker: BreakerPolicy = BreakerPolicy(),  # noqa: B008  frozen
        rng: random.Random | None = None,
        sleep: Sleep | None = None,
        connect: Connect | None = None,
    ) -> None:
        """`name` stands for the peer in errors, logs and metrics. `now`: the monotonic clock, in seconds.
        `rng` (None: seeded by the system) and `sleep` (None: the event loop's) serve backoff and breaker.
        `connect` None: over sockets.
        """
        rng = rng or random.Random()  # noqa: S311  jitter, not secrets
        self.name = name
        self.base_url = base_url
        self._service_token = service_token
        self._hooks = hooks
        self._now = now
        self._max_response_bytes = max_response_bytes
        self._max_connections = max_connections
        self._retrier = Retrier(retry, now=now, rng=rng, sleep=sleep)
        self._breakers = CircuitBreakers(
            peer=name,
            policy=breaker,
            classify=outcome_of,
            on_change=hooks.breaker_changed,
            on_refusal=self._look,
            now=now,
            rng=rng,
        )
        self._pool = ConnectionPool(base_url, max_connections=max_connections, connect=connect)
        self._pool_timeouts = 0
        self._rebuilds = 0
        self._durations_s: dict[str, deque[float]] = {}
        self._calls: set[asyncio.Task[bytes]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._look_after_s = -math.inf
        self._boot: str | None = None
        self._closed = False

    async def post(
        self,
        path: str,
        body: BaseModel | None,
        reply: type[T],
        *,
        deadline: Deadline | None = None,
        timeout_s: float = 2.0,
        idempotent: bool = False,
        operation: Operation = "control",
        bearer: str | None = None,
    ) -> T:
        """POST `body` as JSON. `idempotent`: the peer does the same on a second arrival, so it may be retried."""
        content = None if body is None else body.model_dump_json().encode()
        call = _Call("POST", path, operation, content, {}, bearer, timeout_s, deadline or current_deadline.get())
        return self._parsed(call, reply, await self._run(call, idempotent=idempotent))

    async def get(
        self,
        path: str,
        reply: type[T],
        *,
        params: Mapping[str, str] | None = None,
        deadline: Deadline | None = None,
        timeout_s: float = 2.0,
        operation: Operation = "control",
        bearer: str | None = None,
    ) -> T:
        """GET, retried when the peer does not answer."""
        call = _Call("GET", path, operation, None, params or {}, bearer, timeout_s, deadline or current_deadline.get())
        return self._parsed(call, reply, await self._run(call, idempotent=True))

    async def delete(
        self,
        path: str,
        reply: type[T],
        *,
        deadline: Deadline | None = None,
        timeout_s: float = 2.0,
        operation: Operation = "control",
        bearer: str | None = None,
    ) -> T:
        """DELETE, retried when the peer does not answer."""
        call = _Call("DELETE", path, operation, None, {}, bearer, timeout_s, deadline or current_deadline.get())
        return self._parsed(call, reply, await self._run(call, idempotent=True))

    async def download(
        self, path: str, *, start: int = 0, timeout_s: float = 10.0, bearer: str | None = None
    ) -> AsyncIterator[bytes]:
        """The bytes of a file from `start` on, as they come. `timeout_s` bounds each silence, not the whole.

        Nothing is retried: the caller goes on from what it has.
        """
        headers = self._headers(bearer) | {"Range": f"bytes={start}-"}
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        expected = {200, 206} if start == 0 else {206}
        async with self._opened("stage_file", "GET", path, expected, headers=headers, timeout=timeout) as response:
            async for chunk in response.aiter_raw():
                yield chunk

    async def stream_post(
        self,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        bearer: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Upload `chunks` in one long POST; returns when the peer answered after the last of them.

        While it runs nothing comes back: a peer that refuses closes the connection, which raises
        `PeerUnavailable` at a later chunk, or the peer's own error if its answer still arrived.
        """
        timeout = httpx.Timeout(connect=CONNECT_TIMEOUT_S, write=LINK_WRITE_TIMEOUT_S, read=None, pool=1.0)
        all_headers = self._headers(bearer) | dict(headers or {})
        proven_from_s = self._now() + LINK_PROVEN_S
        try:
            async with self._breakers.guard("link") as admission:

                async def told() -> AsyncIterator[bytes]:
                    async for chunk in chunks:
                        if self._now() >= proven_from_s:
                            admission.proven()
                        yield chunk

                async with self._answer("POST", path, {200, 204}, headers=all_headers, timeout=timeout, content=told()):
                    pass  # the answer comes after the last chunk
        except CallFailed as failed:
            raise failed.error from failed.__cause__

    async def stream_lines(
        self, path: str, *, params: Mapping[str, str] | None = None, bearer: str | None = None
    ) -> AsyncIterator[str]:
        """The lines of a long answer (server-sent events), until the peer ends it."""
        timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=LINES_SILENCE_S)
        headers = self._headers(bearer)
        async with self._opened(
            "control", "GET", path, {200}, headers=headers, timeout=timeout, params=params
        ) as response:
            async for line in response.aiter_lines():
                yield line

    async def check(self) -> None:
        """Raise `PeerUnavailable` unless the peer answers at /livez. For readiness: not retried, no breaker.

        A peer that was started anew is another incarnation: its breakers start closed again.
        """
        await self.service_name()

    async def service_name(self) -> str:
        """Which service of Butterfly answers there; otherwise as `check`."""
        try:
            alive = _Alive.model_validate_json(await self._own_task(self._exchange(_ALIVE_CALL)))
        except CallFailed as failed:
            raise failed.error from failed.__cause__
        except ValidationError:
            raise ProtocolViolation(f"{self.name} answered /livez with a body that breaks the contract") from None
        self.incarnation(alive.boot)
        return alive.service

    def incarnation(self, boot: str) -> None:
        """Say which run of the peer is being called; breakers of another run are forgotten."""
        if boot != self._boot:
            self._boot = boot
            self._breakers.reset()

    async def breaker_state(self, operation: Operation) -> BreakerState:
        return await self._breakers.state(operation)

    def state(self) -> PeerState:
        """For an operator's eyes."""
        return PeerState(
            peer=self.name,
            address=httpx.URL(self.base_url).netloc.decode(),
            incarnation=self._boot,
            breakers=self._breakers.views(),
            retry_budget=self._retrier.budget_left,
            pool=PoolView(
                calls=self._pool.calls,
                max_connections=self._max_connections,
                timeouts=self._pool_timeouts,
                rebuilds=self._rebuilds,
            ),
        )

    async def aclose(self) -> None:
        """Close the connections; calls under way fail with `PeerUnavailable`."""
        self._closed = True
        await self._pool.aclose()
        if self._calls or self._closing:
            await asyncio.wait(self._calls | self._closing)

    async def _run(self, call: _Call, *, idempotent: bool) -> bytes:
        try:
            if not idempotent:
                return await self._own_task(self._guarded(call))
            return await self._retrier.call(
                lambda: self._own_task(self._guarded(call)),
                worth_it=lambda error: isinstance(error, CallFailed) and error.may_pass,
                on_retry=lambda attempt, wait_s: tell(
                    self._hooks.retried, Retried(self.name, call.operation, attempt, wait_s)
                ),
                deadline=call.deadline,
                typical_s=self._typical_s(call.operation),
            )
        except CallFailed as failed:
            raise failed.error from failed.__cause__

    async def _own_task(self, coro: Coroutine[object, object, bytes]) -> bytes:
        task = asyncio.create_task(coro)  # noqa: TID251  outlives a cancelled caller: see the module's docstring
        self._calls.add(task)
        task.add_done_callback(self._call_ended)
        return await asyncio.shield(task)

    def _call_ended(self, task: "asyncio.Task[bytes]") -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen: the caller may be gone

    async def _guarded(self, call: _Call) -> bytes:
        ends_within_s = call.limit_s(self._now()) + 2 * OVERTIME_S
        async with self._breakers.guard(call.operation, limit_s=ends_within_s):
            return await self._exchange(call)

    def _look(self) -> None:
        """A caller was turned away: ask in the background whether the peer is back, so that later callers need not wait
        for as long as the circuit would stay open. Not more often than every `LOOK_EVERY_S`."""
        if self._closed or self._now() < self._look_after_s:
            return
        self._look_after_s = self._now() + LOOK_EVERY_S
        task = asyncio.create_task(self._looked())  # noqa: TID251  as in _own_task
        self._calls.add(task)
        task.add_done_callback(self._call_ended)

    async def _looked(self) -> bytes:
        answer = await self._exchange(_ALIVE_CALL)
        self._breakers.probe_now()
        return answer

    async def _exchange(self, call: _Call) -> bytes:
        began_s, headers = self._now(), self._headers(call.bearer)
        limit_s = call.limit_s(began_s)
        left_ms = int(limit_s * 1000) - HOP_ALLOWANCE_MS
        if left_ms <= 0:
            raise CallFailed.neutral(DeadlineExceeded(f"no time left to ask {self.name}"))
        headers[DEADLINE_HEADER] = str(left_ms)
        if call.content is not None:
            headers["Content-Type"] = "application/json"
        timeout = httpx.Timeout(limit_s, connect=min(CONNECT_TIMEOUT_S, limit_s))
        # httpx bounds each silence: a head that comes byte by byte would keep a call for hours.
        overtime = asyncio.get_running_loop().call_later(limit_s + OVERTIME_S, self._cut_off)
        try:
            async with (
                self._lease() as client,
                client.stream(
                    call.method,
                    call.path,
                    content=call.content,
                    params=call.params or None,
                    headers=headers,
                    timeout=timeout,
                ) as response,
            ):
                content = await self._read(response, until_s=began_s + limit_s)
        except httpx.TransportError as error:
            own_deadline = limit_s < call.timeout_s
            raise self._transport_failure(error, own_deadline=own_deadline) from error
        finally:
            overtime.cancel()
        self._pool_timeouts = 0
        took_s = self._now() - began_s
        self._durations_s.setdefault(call.operation, deque(maxlen=DURATIONS_KEPT)).append(took_s)
        tell(self._hooks.bytes_sent, BytesSent(self.name, call.operation, len(call.content or b""), took_s))
        if not response.is_success:
            raise refusal(self.name, call.path, response.status_code, content, had_deadline=call.deadline is not None)
        return content

    async def _read(self, response: httpx.Response, *, until_s: float) -> bytes:
        content = bytearray()
        async for chunk in response.aiter_raw():
            content += chunk
            if len(content) > self._max_response_bytes:
                raise CallFailed.answered(
                    ProtocolViolation(f"{self.name} answered with more than {self._max_response_bytes} bytes")
                )
            if self._now() > until_s:  # httpx bounds each silence, this the whole
                raise httpx.ReadTimeout("the whole answer took too long", request=response.request)
        return bytes(content)

    @asynccontextmanager
    async def _opened(
        self,
        operation: Operation,
        method: str,
        path: str,
        expected: set[int],
        *,
        headers: Mapping[str, str],
        timeout: httpx.Timeout,  # noqa: ASYNC109  httpx's own limits, not a time limit around the call
        params: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """A long exchange, once its answer has begun with an expected status."""
        try:
            async with (
                self._breakers.guard(operation) as admission,
                self._answer(method, path, expected, headers=headers, timeout=timeout, params=params) as response,
            ):
                admission.proven()
                yield response
        except CallFailed as failed:
            raise failed.error from failed.__cause__

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        expected: set[int],
        *,
        headers: Mapping[str, str],
        timeout: httpx.Timeout,  # noqa: ASYNC109  as above
        content: AsyncIterator[bytes] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        try:
            async with (
                self._lease() as client,
                client.stream(
                    method, path, content=content, params=params, headers=headers, timeout=timeout
                ) as response,
            ):
                if response.status_code not in expected:
                    body = await self._read(response, until_s=self._now() + CONNECT_TIMEOUT_S)
                    raise refusal(self.name, path, response.status_code, body, had_deadline=False)
                yield response
        except httpx.TransportError as error:
            raise self._transport_failure(error, own_deadline=False) from error

    def _lease(self) -> Lease:
        if self._closed:
            raise CallFailed.neutral(PeerUnavailable(f"{self.name} is not called any more: this service stops"))
        return self._pool.lease()

    def _cut_off(self) -> None:
        """Close the connections of a peer that does not come to an end: calls under way on them fail."""
        late, self._pool = self._pool, self._pool.replaced()
        closing = asyncio.create_task(late.aclose())  # noqa: TID251  kept until it ends
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _transport_failure(self, error: httpx.TransportError, *, own_deadline: bool) -> CallFailed:
        if isinstance(error, httpx.PoolTimeout):
            self._pool_timeouts += 1
            if self._pool_timeouts >= POOL_TIMEOUTS_TO_REBUILD:
                self._pool_timeouts = 0
                self._pool = self._pool.replaced()
                self._rebuilds += 1
                tell(self._hooks.pool_rebuilt, PoolRebuilt(self.name))
        return failed_transport(self.name, error, own_deadline=own_deadline)

    def _parsed(self, call: _Call, reply: type[T], content: bytes) -> T:
        try:
            return reply.model_validate_json(content or b"{}")
        except ValidationError:
            raise ProtocolViolation(
                f"{self.name} answered {call.method} {call.path} with a body that breaks the contract"
            ) from None

    def _headers(self, bearer: str | None) -> dict[str, str]:
        headers = {}
        if self._service_token:
            headers[SERVICE_TOKEN_HEADER] = self._service_token
        if bearer is not None:
            headers["Authorization"] = f"Bearer {bearer}"
        request_id = current_request_id.get()
        if request_id is not None:
            headers[REQUEST_ID_HEADER] = request_id
        return headers

    def _typical_s(self, operation: Operation) -> float:
        durations_s = self._durations_s.get(operation)
        return statistics.median(durations_s) if durations_s else 0.0


class _Alive(BaseModel):
    """What every service answers at /livez."""

    service: str
    boot: str
    """Changes with every start of the process."""


class PeerClients:
    """The clients of one process: one per peer, made at first use, closed together."""

    def __init__(
        self,
        *,
        hooks: PeerHooks,
        now: Callable[[], float],
        service_token: str = "",
        trusted_urls: Collection[str] = (),
        trusted_breaker: BreakerPolicy = BreakerPolicy(),  # noqa: B008  frozen
        max_connections: int = 100,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008  frozen
        rng: random.Random | None = None,
        connect: Connect | None = None,
    ) -> None:
        """`service_token` is shown to the peers at `trusted_urls` alone: a worker must never see it. These also have
        breakers of their own policy."""
        self._trusted_urls = frozenset(trusted_urls)
        self._trusted_breaker = trusted_breaker
        self._hooks = hooks
        self._now = now
        self._service_token = service_token
        self._max_connections = max_connections
        self._retry = retry
        self._rng = rng
        self._connect = connect
        self._clients: dict[tuple[str, str], PeerClient] = {}

    def get(
        self, name: str, url: str, *, incarnation: str | None = None, retry: RetryPolicy | None = None
    ) -> PeerClient:
        """The client of peer `name` at `url`. Another `incarnation` than before: its breakers start closed. `retry`:
        of a client that is made now, in place of everybody's."""
        client = self._clients.get((name, url))
        if client is None:
            is_trusted = url in self._trusted_urls
            client = PeerClient(
                name=name,
                base_url=url,
                service_token=self._service_token if is_trusted else "",
                breaker=self._trusted_breaker if is_trusted else BreakerPolicy(),
                hooks=self._hooks,
                now=self._now,
                max_connections=self._max_connections,
                retry=retry or self._retry,
                rng=self._rng,
                connect=self._connect,
            )
            self._clients[name, url] = client
        if incarnation is not None:
            client.incarnation(incarnation)
        return client

    async def forget(self, name: str) -> None:
        """Close the clients of a peer that is gone."""
        for key in [key for key in self._clients if key[0] == name]:
            await self._clients.pop(key).aclose()

    def states(self) -> tuple[PeerState, ...]:
        """Of every peer that was called, by name."""
        return tuple(client.state() for _, client in sorted(self._clients.items()))

    async def aclose(self) -> None:
        for client in list(self._clients.values()):
            await client.aclose()
        self._clients.clear()
