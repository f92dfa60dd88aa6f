"""The official OpenAI client, unchanged, against a running cluster."""

import asyncio
import time
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.running import Cluster

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Write one sentence about butterflies."}]


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{cluster.api_url}/v1",
        api_key="anything",
        timeout=60,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    ) as client:
        yield client


def eventually(holds: Callable[[], bool], limit_s: float) -> bool:
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


def test_the_model_is_listed(client: openai.OpenAI, cluster: Cluster) -> None:
    assert cluster.model in [model.id for model in client.models.list()]
    assert client.models.retrieve(cluster.model).owned_by == "butterfly"


def test_a_chat_answers(client: openai.OpenAI, cluster: Cluster) -> None:
    answer = client.chat.completions.create(model=cluster.model, messages=ASK, max_tokens=12, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == cluster.model
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in {"stop", "length"}
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert 1 <= answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_gives_the_same_text_as_the_whole_answer(client: openai.OpenAI, cluster: Cluster) -> None:
    whole = client.chat.completions.create(model=cluster.model, messages=ASK, max_tokens=16, temperature=0)
    stream = client.chat.completions.create(
        model=cluster.model,
        messages=ASK,
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_same_seed_gives_the_same_tokens(client: openai.OpenAI, cluster: Cluster) -> None:
    answers = [
        client.chat.completions.create(
            model=cluster.model, messages=ASK, max_tokens=12, temperature=1.0, top_p=0.95, seed=11
        )
        for _ in range(2)
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    assert answers[0].system_fingerprint == answers[1].system_fingerprint


def test_a_completion_answers_and_streams(client: openai.OpenAI, cluster: Cluster) -> None:
    answer = client.completions.create(model=cluster.model, prompt="Once upon a time", max_tokens=8, temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    chunks = client.completions.create(
        model=cluster.model, prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_the_text_ends_before_a_stop_string(client: openai.OpenAI, cluster: Cluster) -> None:
    free = client.completions.create(model=cluster.model, prompt="One, two, three, four,", max_tokens=16, temperature=0)
    text = free.choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    assert stop
    cut = client.completions.create(
        model=cluster.model, prompt="One, two, three, four,", max_tokens=16, temperature=0, stop=stop
    )
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_logprobs_fit_the_tokens(client: openai.OpenAI, cluster: Cluster) -> None:
    answer = client.chat.completions.create(
        model=cluster.model, messages=ASK, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert answer.usage is not None
    assert len(choice.logprobs.content) == answer.usage.completion_tokens
    for token in choice.logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].token == token.token  # greedy takes the likeliest


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_value"),
        ({"n": 2}, openai.BadRequestError, "unsupported_parameter"),
        ({"messages": []}, openai.BadRequestError, "empty_input"),
        ({"max_tokens": 1_000_000}, openai.BadRequestError, "context_length_exceeded"),
    ],
)
def test_errors_arrive_as_the_clients_own_classes(
    client: openai.OpenAI,
    cluster: Cluster,
    changes: dict[str, object],
    error: type[openai.APIStatusError],
    code: str,
) -> None:
    body: dict[str, object] = {"model": cluster.model, "messages": ASK, "max_tokens": 4} | changes
    with pytest.raises(error) as raised:
        client.post("/chat/completions", body=body, cast_to=object)
    assert raised.value.code == code
    assert raised.value.request_id


def test_more_liars_than_the_cluster_withstands_cannot_be_asked_for(client: openai.OpenAI, cluster: Cluster) -> None:
    wish = {"verification": "audit", "max_byzantine": 2}
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=cluster.model, messages=ASK, max_tokens=4, extra_body={"butterfly": wish})
    assert raised.value.param == "butterfly.max_byzantine"


def test_closing_a_stream_cancels_its_task_within_a_second(client: openai.OpenAI, cluster: Cluster) -> None:
    stream = client.chat.completions.create(
        model=cluster.model,
        messages=ASK,
        max_tokens=800,
        temperature=1.0,
        seed=5,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    task_id = stream.response.headers["x-butterfly-task-id"]
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    stream.close()

    def is_cancelled() -> bool:
        answer = httpx.get(f"{cluster.api_url}/v1/tasks/{task_id}", trust_env=False)
        return bool(answer.json()["status"] == "cancelled")

    assert eventually(is_cancelled, limit_s=2.0)


async def test_many_clients_are_served_at_once(cluster: Cluster) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{cluster.api_url}/v1",
        api_key="anything",
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    ) as client:
        answers = await asyncio.gather(
            *(
                client.completions.create(model=cluster.model, prompt=f"Number {number}:", max_tokens=6, temperature=0)
                for number in range(4)
            )
        )
    assert all(answer.usage is not None and answer.usage.completion_tokens >= 1 for answer in answers)
