"""What bad input gets, row by row of the design's table, in the dialect of its route."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from services.api.app import Surroundings, join
from shared.domain.errors import (
    NoCapacity,
    PeerUnavailable,
    ProtocolViolation,
    QueueFull,
    QuotaExceeded,
    RegistryUnavailable,
    VerificationUnavailable,
)
from shared.domain.task import Verification
from shared.runtime.config import ApiConfig, Config, CoordinationConfig
from tests.fakes.catalogue import ByteVocabulary, FakeCatalogue, FakeNodes, FakeServices, FixedVocabularies
from tests.fakes.clock import FakeClock
from tests.fakes.planner import LocalPlanner
from tests.fakes.receipts import MemoryReceiptStore
from tests.fakes.scheduler import FakeScheduler
from tests.fakes.task_registry import MemoryTaskRegistry

CHAT: dict[str, object] = {"model": "bytes", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, object] = {"model": "bytes", "prompt": "hi"}
CHAT_PATH, TEXT_PATH, TASK_PATH = "/v1/chat/completions", "/v1/completions", "/v1/tasks"


class Refusing:
    """A gateway without a port: nothing here gets as far as an answer."""

    def __init__(self, config: Config, vocabulary: ByteVocabulary) -> None:
        clock = FakeClock()
        registry = MemoryTaskRegistry(now=clock.wall_s)
        self.scheduler = FakeScheduler(registry)
        self.catalogue = FakeCatalogue()
        outside = Surroundings(
            scheduler=self.scheduler,
            catalogue=self.catalogue,
            nodes=FakeNodes(),
            planner=LocalPlanner(),
            services=FakeServices(),
            registry=registry,
            receipts=MemoryReceiptStore(registry, now=clock.wall_s),
            vocabularies=FixedVocabularies(vocabulary),
            clock=clock,
        )
        transport = httpx.ASGITransport(join(config, outside))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://gateway")

    async def openai_error(self, path: str, body: object) -> tuple[int, str, str | None]:
        """Status, code and param; checks the shape and the type."""
        return openai_error(await self.client.post(path, json=body))


def openai_error(answer: httpx.Response) -> tuple[int, str, str | None]:
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    expected = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        answer.status_code, "server_error" if answer.status_code >= 500 else "invalid_request_error"
    )
    assert error["type"] == expected
    assert answer.headers["x-request-id"]
    return answer.status_code, error["code"], error["param"]


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"] == f"urn:butterfly:problem:{body['code']}"
    assert body["status"] == answer.status_code
    assert body["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, body["code"]


@pytest.fixture
async def gateway() -> AsyncIterator[Refusing]:
    refusing = Refusing(Config(), ByteVocabulary())
    async with refusing.client:
        yield refusing


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b'"text"', b'{"a":' * 100 + b"1" + b"}" * 100, b"[" * 100_000]
)
async def test_what_is_no_json_object_is_400_everywhere(gateway: Refusing, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    for path in (CHAT_PATH, TEXT_PATH):
        answer = await gateway.client.post(path, content=content, headers=headers)
        assert openai_error(answer) == (400, "invalid_json", None)
    assert problem(await gateway.client.post(TASK_PATH, content=content, headers=headers)) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"butterfly": {"priority": 101}}, "butterfly.priority"),
        ({"butterfly": {"deadline_s": 0}}, "butterfly.deadline_s"),
        ({"butterfly": {"verification": "some"}}, "butterfly.verification"),
        ({"butterfly": {"verification": "audit", "max_byzantine": 9}}, "butterfly.max_byzantine"),
        ({"butterfly": {"hold": "yes"}}, "butterfly.hold"),
        ({"butterfly": {"verification": "none", "hold": True}}, "butterfly.hold"),
    ],
)
async def test_a_bad_value_is_400_with_its_parameter(gateway: Refusing, change: dict[str, object], param: str) -> None:
    assert await gateway.openai_error(CHAT_PATH, CHAT | change) == (400, "invalid_value", param)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_not_finite_are_400_with_their_parameter(gateway: Refusing, number: str) -> None:
    content = json.dumps(CHAT)[:-1] + f', "temperature": {number}}}'
    headers = {"content-type": "application/json"}
    answer = await gateway.client.post(CHAT_PATH, content=content, headers=headers)
    assert openai_error(answer) == (400, "invalid_value", "temperature")


async def test_half_a_surrogate_pair_is_400_with_its_parameter(gateway: Refusing) -> None:
    content = r'{"model": "bytes", "messages": [{"role": "user", "content": "\ud800"}]}'
    headers = {"content-type": "application/json"}
    answer = await gateway.client.post(CHAT_PATH, content=content, headers=headers)
    assert openai_error(answer) == (400, "invalid_value", "messages.0.content")


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (CHAT_PATH, {"n": 2}, "n"),
        (CHAT_PATH, {"tools": [{"type": "function"}]}, "tools"),
        (CHAT_PATH, {"functions": [{}]}, "functions"),
        (CHAT_PATH, {"tool_choice": "auto"}, "tool_choice"),
        (CHAT_PATH, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT_PATH, {"modalities": ["audio"]}, "modalities"),
        (CHAT_PATH, {"audio": {}}, "audio"),
        (CHAT_PATH, {"prediction": {}}, "prediction"),
        (CHAT_PATH, {"web_search_options": {}}, "web_search_options"),
        (CHAT_PATH, {"butterfly": {"receipt": True}}, "butterfly.receipt"),
        (TEXT_PATH, {"echo": True}, "echo"),
        (TEXT_PATH, {"best_of": 2}, "best_of"),
        (TEXT_PATH, {"suffix": "end"}, "suffix"),
        (TEXT_PATH, {"prompt": ["a", "b"]}, "prompt"),
        (TEXT_PATH, {"prompt": [[1], [2]]}, "prompt"),
    ],
)
async def test_a_known_parameter_that_cannot_be_honoured_is_refused(
    gateway: Refusing, path: str, change: dict[str, object], param: str
) -> None:
    body = (CHAT if path == CHAT_PATH else TEXT) | change
    assert await gateway.openai_error(path, body) == (400, "unsupported_parameter", param)


async def test_content_parts_other_than_text_are_refused(gateway: Refusing) -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    body = CHAT | {"messages": [{"role": "user", "content": parts}]}
    assert await gateway.openai_error(CHAT_PATH, body) == (400, "unsupported_content_part", "messages.0.content")


@pytest.mark.parametrize("prompt", ["", [], [""], [[]]])
async def test_an_empty_prompt_is_400(gateway: Refusing, prompt: object) -> None:
    assert await gateway.openai_error(TEXT_PATH, TEXT | {"prompt": prompt}) == (400, "empty_input", "prompt")
    task = {"kind": "completion", "model": "bytes", "input": {"prompt": prompt}}
    assert problem(await gateway.client.post(TASK_PATH, json=task)) == (422, "empty_input")


async def test_no_messages_are_400(gateway: Refusing) -> None:
    assert await gateway.openai_error(CHAT_PATH, CHAT | {"messages": []}) == (400, "empty_input", "messages")


async def test_a_token_outside_the_vocabulary_is_400(gateway: Refusing) -> None:
    assert await gateway.openai_error(TEXT_PATH, TEXT | {"prompt": [1, 300]}) == (400, "invalid_token", "prompt.1")
    assert await gateway.openai_error(TEXT_PATH, TEXT | {"prompt": [-1]}) == (400, "invalid_token", "prompt.0")
    body = CHAT | {"stop_token_ids": [1, 257]}
    assert await gateway.openai_error(CHAT_PATH, body) == (400, "invalid_token", "stop_token_ids.1")


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (CHAT_PATH, {"max_tokens": 2_041}, "messages"),
        (CHAT_PATH, {"messages": [{"role": "user", "content": "x" * 2_048}]}, "messages"),
        (TEXT_PATH, {"prompt": "x" * 2_033}, "prompt"),
        (TEXT_PATH, {"prompt": [65] * 2_049, "max_tokens": 1}, "prompt"),
    ],
)
async def test_a_prompt_that_leaves_no_room_is_400(
    gateway: Refusing, path: str, change: dict[str, object], param: str
) -> None:
    body = (CHAT if path == CHAT_PATH else TEXT) | change
    assert await gateway.openai_error(path, body) == (400, "context_length_exceeded", param)


async def test_an_unknown_model_is_404(gateway: Refusing) -> None:
    assert await gateway.openai_error(CHAT_PATH, CHAT | {"model": "gpt-4"}) == (404, "model_not_found", None)
    assert openai_error(await gateway.client.get("/v1/models/a/b")) == (404, "model_not_found", None)
    task = {"kind": "chat", "model": "gpt-4", "input": {"messages": CHAT["messages"]}}
    assert problem(await gateway.client.post(TASK_PATH, json=task)) == (404, "model_not_found")


async def test_a_model_without_chat_template_still_completes() -> None:
    refusing = Refusing(Config(), ByteVocabulary(has_template=False))
    assert await refusing.openai_error(CHAT_PATH, CHAT) == (400, "no_chat_template", "model")


@pytest.mark.parametrize("mode", ["audit", "quorum"])
async def test_verification_that_cannot_be_given_is_503_and_not_to_be_retried(gateway: Refusing, mode: str) -> None:
    gateway.scheduler.refuses_with = VerificationUnavailable("it needs 3 nodes, 1 is present")
    answer = await gateway.client.post(CHAT_PATH, json=CHAT | {"butterfly": {"verification": mode}})
    assert openai_error(answer)[:2] == (503, "verification_unavailable")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    task = {"kind": "chat", "model": "bytes", "input": {"messages": CHAT["messages"]}, "verification": mode}
    assert problem(await gateway.client.post(TASK_PATH, json=task)) == (503, "verification_unavailable")


@pytest.mark.parametrize(
    ("asked", "mode", "max_byzantine"),
    [
        ({}, Verification.AUDIT, 2),
        ({"max_byzantine": 1}, Verification.AUDIT, 1),
        ({"verification": "quorum"}, Verification.QUORUM, 2),
        ({"verification": "none"}, Verification.NONE, 0),
    ],
)
async def test_the_configured_verification_is_never_weakened_silently(
    asked: dict[str, object], mode: Verification, max_byzantine: int
) -> None:
    coordination = CoordinationConfig(default_verification="audit", max_byzantine=2)
    refusing = Refusing(Config(coordination=coordination), ByteVocabulary())
    task = {"kind": "chat", "model": "bytes", "input": {"messages": CHAT["messages"]}}
    wish = {"mode" if key == "verification" else key: value for key, value in asked.items()}
    answer = await refusing.client.post(TASK_PATH, json=task | {"verification": wish})
    assert answer.status_code == 202
    submitted = refusing.scheduler.submissions[-1].task
    assert (submitted.verification, submitted.max_byzantine) == (mode, max_byzantine)


@pytest.mark.parametrize(
    ("fraction", "asked", "hold"),
    [
        (0.1, {}, False),
        (0.1, {"hold": True}, True),
        (0.1, {"verification": "quorum", "hold": True}, True),
        (1.0, {}, True),
        (1.0, {"hold": False}, False),
        (1.0, {"verification": "none"}, False),
    ],
)
async def test_answers_are_held_back_where_that_is_asked_for_or_all_are_audited(
    fraction: float, asked: dict[str, object], hold: bool
) -> None:
    refusing = Refusing(Config(coordination=CoordinationConfig(tail_audit_fraction=fraction)), ByteVocabulary())
    task = {"kind": "chat", "model": "bytes", "input": {"messages": CHAT["messages"]}}
    wish = {"mode" if key == "verification" else key: value for key, value in asked.items()}
    answer = await refusing.client.post(TASK_PATH, json=task | {"verification": wish})
    assert answer.status_code == 202
    assert answer.json()["verification"]["hold"] is hold
    assert refusing.scheduler.submissions[-1].task.hold is hold


async def test_verification_against_no_liar_at_all_is_refused() -> None:
    refusing = Refusing(Config(coordination=CoordinationConfig(max_byzantine=0)), ByteVocabulary())
    body = CHAT | {"butterfly": {"verification": "audit"}}
    assert await refusing.openai_error(CHAT_PATH, body) == (503, "verification_unavailable", "butterfly.verification")


async def test_a_body_above_the_limit_is_413() -> None:
    refusing = Refusing(Config(api=ApiConfig(max_request_size_mb=1)), ByteVocabulary())
    body = CHAT | {"user": "x" * 1_100_000}
    assert await refusing.openai_error(CHAT_PATH, body) == (413, "body_too_large", None)
    assert problem(await refusing.client.post(TASK_PATH, json=body)) == (413, "body_too_large")


async def test_a_body_that_is_not_json_by_its_type_is_415(gateway: Refusing) -> None:
    headers = {"content-type": "text/plain"}
    answer = await gateway.client.post(CHAT_PATH, content=b"{}", headers=headers)
    assert openai_error(answer) == (415, "unsupported_media_type", None)
    answer = await gateway.client.post(TASK_PATH, content=b"{}", headers=headers)
    assert problem(answer) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QueueFull("full", retry_after_s=3), 503, "queue_full"),
        (NoCapacity("no nodes"), 503, "no_capacity"),
        (RegistryUnavailable("away"), 503, "registry_unavailable"),
        (PeerUnavailable("away"), 503, "peer_unavailable"),
        (QuotaExceeded("too many"), 429, "rate_limit_exceeded"),
    ],
)
async def test_what_may_work_later_comes_with_retry_after(
    gateway: Refusing, error: QueueFull, status: int, code: str
) -> None:
    gateway.scheduler.refuses_with = error
    answer = await gateway.client.post(CHAT_PATH, json=CHAT)
    assert openai_error(answer)[:2] == (status, code)
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    task = {"kind": "chat", "model": "bytes", "input": {"messages": CHAT["messages"]}}
    answer = await gateway.client.post(TASK_PATH, json=task)
    assert problem(answer) == (status, code)
    assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_a_fault_between_our_services_is_no_fault_of_the_client(gateway: Refusing) -> None:
    gateway.catalogue.refuses_with = ProtocolViolation("partitioner answered nonsense")
    assert await gateway.openai_error(CHAT_PATH, CHAT) == (500, "internal_error", None)


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/responses", "/v1/nothing", "/v1", "/v1/chat/completions/", "/v1/modelsx"]
)
async def test_unknown_paths_below_v1_answer_as_openai(gateway: Refusing, path: str) -> None:
    assert openai_error(await gateway.client.post(path, json={})) == (404, "unknown_url", None)


@pytest.mark.parametrize("path", ["/", "/nothing", "/v1/tasks/a/b/c", "/v1/plans", "/v1/events"])
async def test_unknown_paths_elsewhere_answer_as_problems(gateway: Refusing, path: str) -> None:
    assert problem(await gateway.client.get(path)) == (404, "unknown_url")


async def test_unknown_paths_below_v2_answer_with_a_text(gateway: Refusing) -> None:
    answer = await gateway.client.post("/v2/models/bytes/infer", json={})
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("unknown_url: ")


async def test_a_wrong_method_is_405_with_the_right_ones(gateway: Refusing) -> None:
    answer = await gateway.client.get(CHAT_PATH)
    assert openai_error(answer) == (405, "method_not_allowed", None)
    assert answer.headers["allow"] == "POST"
    assert problem(await gateway.client.delete("/v1/nodes")) == (405, "method_not_allowed")
    answer = await gateway.client.put("/v1/tasks", json={})
    assert problem(answer) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    ("change", "code", "paths"),
    [
        ({"kind": "image"}, "validation_failed", ["kind"]),
        ({"input": None}, "validation_failed", ["input"]),
        ({"colour": "red"}, "validation_failed", ["colour"]),
        ({"priority": 101}, "validation_failed", ["priority"]),
        ({"priority": "high", "deadline_s": -1}, "validation_failed", ["priority", "deadline_s"]),
        ({"result_ttl_s": 10}, "validation_failed", ["result_ttl_s"]),
        ({"metadata": {"a": 1}}, "validation_failed", ["metadata.a"]),
        ({"verification": "some"}, "validation_failed", ["verification.mode"]),
        ({"verification": {"mode": "none", "f": 1}}, "validation_failed", ["verification.f"]),
        ({"input": {"messages": [{"role": "user", "content": 1}]}}, "validation_failed", ["input.messages.0.content"]),
        ({"input": CHAT | {"model": "other"}}, "validation_failed", ["input.model"]),
        ({"input": CHAT | {"temperature": -1}}, "validation_failed", ["input.temperature"]),
        ({"input": CHAT | {"stream": True}}, "unsupported_parameter", None),
        ({"input": CHAT | {"tools": [{}]}}, "unsupported_parameter", None),
        ({"input": CHAT | {"max_tokens": 100_000}}, "context_length_exceeded", None),
    ],
)
async def test_a_task_that_breaks_the_schema_is_422_with_every_field(
    gateway: Refusing, change: dict[str, object], code: str, paths: list[str] | None
) -> None:
    task: dict[str, object] = {"kind": "chat", "model": "bytes", "input": {"messages": CHAT["messages"]}}
    answer = await gateway.client.post(TASK_PATH, json=task | change)
    assert problem(answer) == (422, code)
    if paths is not None:
        assert [error["path"] for error in answer.json()["errors"]] == paths


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?limit=0", 422, "validation_failed"),
        ("?limit=101", 422, "validation_failed"),
        ("?limit=x", 422, "validation_failed"),
        ("?status=sleeping", 422, "validation_failed"),
        ("?after=nonsense", 422, "invalid_cursor"),
        ("/not-an-id", 404, "task_not_found"),
        ("/0199f2aa-0000-7000-8000-000000000001", 404, "task_not_found"),
        ("/0199f2aa-0000-7000-8000-000000000001/result", 404, "task_not_found"),
        ("/0199f2aa-0000-7000-8000-000000000001/events", 404, "task_not_found"),
        ("/0199f2aa-0000-7000-8000-000000000001?wait=31", 422, "validation_failed"),
    ],
)
async def test_bad_questions_about_tasks(gateway: Refusing, query: str, status: int, code: str) -> None:
    assert problem(await gateway.client.get(TASK_PATH + query)) == (status, code)


async def test_a_bad_idempotency_key_is_refused(gateway: Refusing) -> None:
    answer = await gateway.client.post(CHAT_PATH, json=CHAT, headers={"Idempotency-Key": "a b"})
    assert openai_error(answer) == (400, "invalid_value", "Idempotency-Key")


async def test_unknown_and_neutral_parameters_are_ignored(gateway: Refusing) -> None:
    gateway.scheduler.refuses_with = NoCapacity("as far as this test goes")
    extras = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "priority": 3,
        "service_tier": "auto",
        "whatever": [1, {"x": None}],
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "stop": None,
        "seed": None,
        "n": 1,
        "stream_options": {"include_usage": True},
    }
    assert (await gateway.openai_error(CHAT_PATH, CHAT | extras))[:2] == (503, "no_capacity")
