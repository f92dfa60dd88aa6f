"""Every error in every dialect: one walk over all pairs."""

import json

import pytest
from starlette.requests import Request

from services.api.dialects import Dialect, dialect_of, render_error
from services.api.domain import failures
from shared.domain.errors import ButterflyError, InvalidInput, error_from_code
from shared.runtime.statuses import MethodNotAllowed, ValidationFailed

PATHS = {
    "/v1/chat/completions": Dialect.OPENAI,
    "/v1/completions": Dialect.OPENAI,
    "/v1/models/a/b": Dialect.OPENAI,
    "/v1/embeddings": Dialect.OPENAI,
    "/v1/tasksx": Dialect.OPENAI,
    "/v1": Dialect.OPENAI,
    "/v1/tasks": Dialect.PROBLEM,
    "/v1/tasks/1/events": Dialect.PROBLEM,
    "/v1/nodes": Dialect.PROBLEM,
    "/v1/state": Dialect.PROBLEM,
    "/v1/plans/preview": Dialect.PROBLEM,
    "/v2": Dialect.V2,
    "/v2/models/m/infer": Dialect.V2,
    "/": Dialect.PROBLEM,
    "/v10/x": Dialect.PROBLEM,
    "/readyz": Dialect.PROBLEM,
}


def every_error(root: type[ButterflyError] = ButterflyError) -> set[type[ButterflyError]]:
    return {root}.union(*(every_error(child) for child in root.__subclasses__()))


def rendered(error: ButterflyError, path: str) -> tuple[int, dict[str, object], dict[str, str]]:
    request = Request({"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""})
    response = render_error(error, request)
    return response.status_code, json.loads(bytes(response.body)), dict(response.headers)


@pytest.mark.parametrize(("path", "dialect"), PATHS.items())
def test_the_path_alone_chooses_the_dialect(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


@pytest.mark.parametrize("kind", sorted(every_error(), key=str))
def test_every_error_has_the_shape_of_its_dialect(kind: type[ButterflyError]) -> None:
    for path, dialect in PATHS.items():
        status, body, headers = rendered(kind("what is wrong", param="field"), path)
        assert 400 <= status < 600
        assert status != 409  # OpenAI clients retry it by themselves
        match dialect:
            case Dialect.OPENAI:
                error = body["error"]
                assert isinstance(error, dict)
                assert set(error) == {"message", "type", "param", "code"}
            case Dialect.V2:
                assert isinstance(body["error"], str)
            case Dialect.PROBLEM:
                assert headers["content-type"] == "application/problem+json"
                assert {"type", "title", "status", "detail", "code", "retryable"} <= set(body)


def test_an_invalid_request_is_400_for_openai_and_v2_and_422_for_tasks() -> None:
    statuses = [rendered(InvalidInput("no"), path)[0] for path in ("/v1/completions", "/v2/x", "/v1/tasks")]
    assert statuses == [400, 400, 422]


def test_a_bad_value_is_named_by_its_field_in_a_problem() -> None:
    _, body, _ = rendered(InvalidInput("too big", param="priority"), "/v1/tasks")
    assert body["code"] == "validation_failed"
    assert body["errors"] == [{"path": "priority", "message": "too big"}]


def test_codes_are_the_same_word_in_every_dialect() -> None:
    error = error_from_code("queue_full", "full", retry_after_s=2)
    assert rendered(error, "/v1/completions")[1]["error"]["code"] == "queue_full"  # type: ignore[index]
    assert str(rendered(error, "/v2/x")[1]["error"]).startswith("queue_full: ")
    assert rendered(error, "/v1/tasks")[1]["code"] == "queue_full"
    assert rendered(ValidationFailed("x"), "/v1/completions")[1]["error"]["code"] == "invalid_value"  # type: ignore[index]


def test_retry_after_is_jittered_and_bounded() -> None:
    waits = {
        int(rendered(error_from_code("queue_full", "", retry_after_s=20), "/v1/completions")[2]["retry-after"])
        for _ in range(50)
    }
    assert min(waits) >= 20
    assert max(waits) <= 25
    far = error_from_code("queue_full", "", retry_after_s=1_000)
    assert rendered(far, "/v1/tasks")[2]["retry-after"] == "60"


@pytest.mark.parametrize("code", ["verification_unavailable", "deadline_exceeded", "generation_failed"])
def test_where_a_retry_cannot_help_the_answer_says_so(code: str) -> None:
    error = failures.failure_from_code(code, "no") if code == "generation_failed" else error_from_code(code, "no")
    assert rendered(error, "/v1/chat/completions")[2]["x-should-retry"] == "false"


def test_a_wrong_method_names_the_right_ones() -> None:
    error = MethodNotAllowed("no")
    error.allow = "POST"
    assert rendered(error, "/v1/chat/completions")[2]["allow"] == "POST"
