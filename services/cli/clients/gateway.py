"""The gateway as a client sees it, over the standard library: the command starts at once and streams line by line.

No proxies and no redirects: the operator named the address.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from typing import TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.domain.errors import ButterflyError, InvalidInput, PeerUnavailable, ProtocolViolation, error_from_code

_LIMIT_S = 10.0
_SILENCE_S = 60.0
"""A stream says something at least every 10 s."""
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


class _Answer(BaseModel):
    """The gateway may say more than this version of the command knows."""

    model_config = ConfigDict(frozen=True, extra="ignore")


T = TypeVar("T", bound=_Answer)


class Stage(_Answer):
    model: str
    start: int
    end: int
    lane: int = 0


class Capability(_Answer):
    speed: float
    is_measured: bool = False


class Node(_Answer):
    node_id: str
    state: str
    capability: Capability | None = None
    address: str = ""
    stages: tuple[Stage, ...] = ()
    reason: str | None = None
    """Why it holds nothing, or is quarantined or evicted."""
    heartbeat_age_ms: float | None = None


class Pipeline(_Answer):
    plan_id: str
    tokens_per_s: float


class Predicted(_Answer):
    tokens_per_s: float
    verified_tokens_per_s: float
    first_token_ms: float
    answers_ms: float
    is_measured: bool
    is_timed: bool = True


class PlannedSeat(_Answer):
    lane: int
    stage: int
    node_id: str
    start: int
    end: int
    decode_ms: float
    prefill_ms_per_token: float


class NodeMemory(_Answer):
    node_id: str
    used_bytes: int
    reserved_bytes: int
    memory_bytes: int


class Preview(_Answer):
    model: str
    strategy: str
    pipelines: tuple[Pipeline, ...]
    predicted: Predicted
    seats: tuple[PlannedSeat, ...]
    nodes: tuple[NodeMemory, ...]


class TaskError(_Answer):
    code: str = ""
    message: str = ""


class Task(_Answer):
    task_id: str
    status: str
    model: str = ""
    kind: str = ""
    priority: int = 0
    created_at: str | None = None
    error: TaskError | None = None


class Gateway:
    """Every call raises the domain error that the gateway answered, or `PeerUnavailable`."""

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidInput(f"{url!r} should be a URL such as http://127.0.0.1:8080")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())

    def nodes_json(self) -> list[object]:
        """As the gateway tells them."""
        return self._listed(self._json("GET", "/v1/nodes"))

    def nodes(self) -> list[Node]:
        return self.parsed_nodes(self.nodes_json())

    @staticmethod
    def parsed_nodes(told: Sequence[object]) -> list[Node]:
        return [_parsed(Node, item) for item in told]

    def models(self) -> list[str]:
        return [_parsed(_Model, item).id for item in self._listed(self._json("GET", "/v1/models"))]

    def tasks(self, *, limit: int) -> list[Task]:
        """The newest first."""
        listed = self._json("GET", f"/v1/tasks?{urlencode({'limit': limit})}")
        return [_parsed(Task, item) for item in self._listed(listed)]

    def task(self, task_id: str) -> Mapping[str, object]:
        return _object(self._json("GET", f"/v1/tasks/{quote(task_id, safe='')}"))

    def receipt(self, task_id: str) -> Mapping[str, object]:
        return _object(self._json("GET", f"/v1/tasks/{quote(task_id, safe='')}/receipt"))

    def keys(self) -> Mapping[str, object]:
        return _object(self._json("GET", "/v1/keys"))

    def cancel(self, task_id: str) -> Task:
        return _parsed(Task, self._json("POST", f"/v1/tasks/{quote(task_id, safe='')}/cancel", {}))

    def submit(self, model: str, prompt: str, *, max_tokens: int | None, priority: int) -> Task:
        given: dict[str, object] = {"messages": [{"role": "user", "content": prompt}]}
        if max_tokens is not None:
            given["max_tokens"] = max_tokens
        body = {"kind": "chat", "model": model, "input": given, "priority": priority}
        return _parsed(Task, self._json("POST", "/v1/tasks", body))

    def submit_json(self, body: Mapping[str, object]) -> str:
        """Queue a task as the gateway takes it; its id."""
        return _parsed(Task, self._json("POST", "/v1/tasks", body)).task_id

    def events(self, task_id: str) -> Iterator[tuple[str, Mapping[str, object]]]:
        """Name and data of what happens to a task, from its beginning to its end."""
        path = f"/v1/tasks/{quote(task_id, safe='')}/events"
        with self._open("GET", path, None, limit_s=_SILENCE_S) as response:
            name = ""
            for line in _lines(response):
                key, _, value = line.strip().partition(b": ")
                if key == b"event":
                    name = value.decode()
                elif key == b"data":
                    yield name, _object(_loaded(value))

    def preview_json(self, wish: Mapping[str, object]) -> Mapping[str, object]:
        """What the plan would be, as the gateway tells it."""
        return _object(self._json("POST", "/v1/plans/preview", wish))

    @staticmethod
    def parsed_preview(told: Mapping[str, object]) -> Preview:
        return _parsed(Preview, told)

    def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """The answer's text as it comes. Closing the iterator early closes the connection, which cancels the task."""
        body: dict[str, object] = {"model": model, "messages": list(messages), "stream": True}
        chosen = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        body |= {name: value for name, value in chosen.items() if value is not None}
        with self._open("POST", "/v1/chat/completions", body, limit_s=_SILENCE_S) as response:
            for line in _lines(response):
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                if line.startswith(b"data:"):
                    yield _text_of(_object(_loaded(data)))
        raise PeerUnavailable("the gateway ended the stream before the answer was complete")

    def _json(self, method: str, path: str, body: Mapping[str, object] | None = None) -> object:
        with self._open(method, path, body, limit_s=_LIMIT_S) as response:
            try:
                content = response.read(_MAX_ANSWER_BYTES)
            except (OSError, HTTPException):
                raise PeerUnavailable(f"{self._url} broke the connection") from None
        return _loaded(content)

    def _open(self, method: str, path: str, body: Mapping[str, object] | None, *, limit_s: float) -> HTTPResponse:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json, text/event-stream", "User-Agent": "butterfly-cli"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self._url + path, content, headers, method=method)  # noqa: S310  checked above
        try:
            response = self._opener.open(request, timeout=limit_s)
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise PeerUnavailable(
                f"no gateway answers at {self._url} ({reason}): is it up? (`butterfly up`, or name another by --api)"
            ) from None
        if not isinstance(response, HTTPResponse):
            raise AssertionError("an HTTP URL gives an HTTP response")
        return response

    @staticmethod
    def _listed(answer: object) -> list[object]:
        data = _object(answer).get("data")
        if not isinstance(data, list):
            raise ProtocolViolation("the gateway answered without a list")
        return data


class _Model(_Answer):
    id: str


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _refusal(error: urllib.error.HTTPError) -> ButterflyError:
    """The gateway's own words, from either of its dialects."""
    try:
        body = json.loads(error.read(1 << 20))
    except (ValueError, OSError):
        body = None
    told = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(told, dict):
        message = told.get("message") or told.get("detail") or told.get("title")
        if isinstance(message, str):
            return error_from_code(str(told.get("code")), message)
    return PeerUnavailable(f"the gateway answered with status {error.code}")


def _lines(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            line = response.readline()
        except (OSError, HTTPException):
            raise PeerUnavailable("the gateway broke the stream") from None
        if not line:
            return
        yield line


def _text_of(chunk: Mapping[str, object]) -> str:
    failure = chunk.get("error")
    if isinstance(failure, dict):
        raise error_from_code(str(failure.get("code")), str(failure.get("message")))
    match chunk.get("choices"):
        case [{"delta": {"content": str() as text}}, *_]:
            return text
        case _:  # the role at the beginning, the usage at the end
            return ""


def _loaded(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        raise ProtocolViolation("the gateway answered with something else than JSON") from None


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ProtocolViolation("the gateway answered with something else than an object")
    return value


def _parsed(kind: type[T], value: object) -> T:
    try:
        return kind.model_validate(value)
    except ValidationError:
        raise ProtocolViolation(f"the gateway answered with something else than a {kind.__name__.lower()}") from None
