"""/v1/chat/completions and /v1/completions over a real port."""

import asyncio
import json

import httpx
import pytest

from shared.domain.errors import NoCapacity, QueueFull
from shared.domain.task import FinishReason, TokenRecord, Verification
from tests.fakes.catalogue import END_ID, tokens_of
from tests.integration.api.conftest import Gateway, read_events, until

CHAT: dict[str, object] = {"model": "bytes", "messages": [{"role": "user", "content": "hi"}]}


async def ask(gateway: Gateway, path: str = "/v1/chat/completions", **changes: object) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(gateway.client.post(path, json=CHAT | changes))


async def test_a_chat_is_answered_whole(gateway: Gateway) -> None:
    asking = await ask(gateway, max_tokens=20, seed=7)
    task_id = await gateway.answer("Hel", "lo")
    answer = await asking
    assert answer.status_code == 200
    assert answer.headers["x-butterfly-task-id"] == task_id
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert body["id"] == f"chatcmpl-{task_id}"
    assert body["object"] == "chat.completion"
    assert body["model"] == "bytes"
    assert body["system_fingerprint"].startswith("bf_")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13}
    assert body["butterfly"]["seed"] == 7
    assert body["butterfly"]["verified"] is False


async def test_what_was_asked_for_reaches_the_task(gateway: Gateway) -> None:
    asking = await ask(
        gateway,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop=["END", "\n\n"],
        max_completion_tokens=30,
        max_tokens=99,
        logit_bias={"65": -100},
        butterfly={"priority": 9, "deadline_s": 30},
    )
    await gateway.answer("x")
    await asking
    submission = gateway.scheduler.submissions[0]
    task = submission.task
    assert submission.attached
    assert submission.require_capacity
    assert bytes(task.prompt_ids) == b"user:hi\n"
    assert (task.sampler.temperature, task.sampler.top_p, task.sampler.top_k) == (0.5, 0.9, 40)
    assert task.sampler.logit_bias == ((65, -100.0),)
    assert task.stop.strings == ("END", "\n\n")
    assert task.stop.end_ids == (END_ID,)
    assert task.max_tokens == 30
    assert (task.priority, task.deadline_s, task.verification) == (9, 30, Verification.NONE)
    assert task.owner == "anonymous"


async def test_a_seed_is_drawn_and_told_when_none_is_given(gateway: Gateway) -> None:
    asking = await ask(gateway)
    await gateway.answer("x")
    assert (await asking).json()["butterfly"]["seed"] == gateway.scheduler.submissions[0].task.sampler.seed


async def test_chat_may_use_the_rest_of_the_context_and_completions_sixteen_tokens(gateway: Gateway) -> None:
    asking = await ask(gateway)
    await gateway.answer("x")
    await asking
    assert gateway.scheduler.submissions[0].task.max_tokens == 1_024
    asking = await ask(gateway, "/v1/completions", prompt="x" * 2_000)
    await gateway.answer("x", count=2)
    await asking
    assert gateway.scheduler.submissions[1].task.max_tokens == 16


async def test_a_stream_has_role_text_end_usage_and_done(gateway: Gateway) -> None:
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache, no-transform"
        assert response.headers["x-accel-buffering"] == "no"
        assert "content-length" not in response.headers
        reading = asyncio.create_task(read_events(response))
        await gateway.answer("Hel", "lo", reason=FinishReason.LENGTH)
        *chunks, done = await reading
    assert done == "[DONE]"
    assert all(isinstance(chunk, dict) for chunk in chunks)
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1  # type: ignore[index]
    assert [chunk["choices"] for chunk in chunks] == [  # type: ignore[index]
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "Hel"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "lo"}, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}],
        [],
    ]
    usages = [chunk["usage"] for chunk in chunks]  # type: ignore[index]
    assert usages == [None] * 4 + [{"prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13}]
    assert all(chunk["butterfly"]["verified"] is False for chunk in chunks)  # type: ignore[index]


async def test_tokens_are_sent_as_they_are_committed(gateway: Gateway) -> None:
    async with gateway.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        task_id = await gateway.accepted()
        await gateway.conductor.start(task_id)
        lines = response.aiter_lines()
        await gateway.conductor.commit(task_id, tokens_of("first"))
        async for line in lines:
            if "first" in line:
                break
        await gateway.conductor.commit(task_id, tokens_of("second"))
        async for line in lines:
            if "second" in line:
                break
        await gateway.conductor.finish(task_id)
        assert [line async for line in lines if line][-1] == "data: [DONE]"


async def test_completions_stream_text(gateway: Gateway) -> None:
    body = {"model": "bytes", "prompt": "once", "stream": True}
    async with gateway.client.stream("POST", "/v1/completions", json=body) as response:
        reading = asyncio.create_task(read_events(response))
        await gateway.answer("a", "b")
        *chunks, done = await reading
    assert done == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", ""]  # type: ignore[index]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}  # type: ignore[index]
    assert "usage" not in chunks[0]  # type: ignore[operator]


async def test_a_character_in_two_commits_is_never_cut(gateway: Gateway) -> None:
    body = CHAT | {"stream": True}
    async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as response:
        reading = asyncio.create_task(read_events(response))
        await gateway.answer("🦋".encode()[:2], "🦋".encode()[2:])
        events = await reading
    texts = [event["choices"][0]["delta"].get("content") for event in events[1:-2]]  # type: ignore[index]
    assert texts == ["", "🦋"]


async def test_text_is_cut_before_a_stop_string_and_held_back_while_streaming(gateway: Gateway) -> None:
    body = CHAT | {"stream": True, "stop": "STOP", "stream_options": {"include_usage": True}}
    async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as response:
        reading = asyncio.create_task(read_events(response))
        await gateway.answer("ab ST", "OP and more")
        events = await reading
    texts = [event["choices"][0]["delta"].get("content") for event in events[1:4]]  # type: ignore[index]
    assert texts == ["ab ", "", None]
    assert events[3]["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]


async def test_the_end_token_is_no_part_of_the_answer(gateway: Gateway) -> None:
    asking = await ask(gateway)
    task_id = await gateway.accepted()
    await gateway.conductor.start(task_id)
    end = TokenRecord(END_ID, 1.0, other_id=0, other_logit=0.0)
    await gateway.conductor.commit(task_id, (*tokens_of("bye"), end))
    await gateway.conductor.finish(task_id)
    assert (await asking).json()["choices"][0]["message"]["content"] == "bye"


async def test_logprobs_are_given_in_the_shape_of_each_route(gateway: Gateway) -> None:
    asking = await ask(gateway, logprobs=True, top_logprobs=2)
    await gateway.answer("B")
    (chat,) = (await asking).json()["choices"][0]["logprobs"]["content"]
    assert chat == {
        "token": "B",
        "logprob": -0.5,
        "bytes": [66],
        "top_logprobs": [
            {"token": "B", "logprob": -0.5, "bytes": [66]},
            {"token": "A", "logprob": -2.0, "bytes": [65]},
        ],
    }
    asking = await ask(gateway, "/v1/completions", prompt="x", logprobs=2)
    await gateway.answer("é", count=2)
    completion = (await asking).json()["choices"][0]["logprobs"]
    assert completion["tokens"] == ["\ufffd", "\ufffd"]
    assert completion["token_logprobs"] == [-0.5, -0.5]
    assert completion["text_offset"] == [0, 0]


async def test_a_client_that_leaves_a_stream_cancels_its_task(gateway: Gateway) -> None:
    async with gateway.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}):
        task_id = await gateway.accepted()
        await gateway.conductor.start(task_id)
        await gateway.conductor.commit(task_id, tokens_of("a"))
    await until(lambda: gateway.scheduler.cancelled == [task_id], limit_s=1.0)


async def test_a_client_that_leaves_while_waiting_for_the_whole_answer_cancels_its_task(gateway: Gateway) -> None:
    asking = await ask(gateway)
    task_id = await gateway.accepted()
    asking.cancel()
    await until(lambda: gateway.scheduler.cancelled == [task_id], limit_s=1.0)


async def test_an_answer_that_ended_is_not_cancelled(gateway: Gateway) -> None:
    asking = await ask(gateway)
    await gateway.answer("x")
    await asking
    async with gateway.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        await gateway.answer("x", count=2)
        await read_events(response)
    assert gateway.scheduler.cancelled == []


async def test_open_requests_are_renewed_every_five_seconds(gateway: Gateway) -> None:
    asking = await ask(gateway)
    task_id = await gateway.accepted()
    await until(lambda: gateway.clock.num_sleepers >= 1)
    await gateway.clock.advance(5)
    assert gateway.scheduler.renewed == [task_id]
    await gateway.answer("x")
    await asking
    await gateway.clock.advance(5)
    assert gateway.scheduler.renewed == [task_id]


async def test_a_silent_stream_says_keep_alive_every_ten_seconds(gateway: Gateway) -> None:
    async with gateway.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        await gateway.accepted()
        lines = response.aiter_lines()
        await anext(lines)
        await gateway.clock.advance(10)
        async for line in lines:
            if line == ": keep-alive":
                break
        await gateway.answer("x")
        assert [line async for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("deadline_exceeded", "deadline_exceeded"),
        ("engine_fault", "generation_failed"),
        ("attempts_exhausted", "generation_failed"),
    ],
)
async def test_a_failure_inside_a_stream_is_said(gateway: Gateway, code: str, told: str) -> None:
    async with gateway.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        task_id = await gateway.accepted()
        await gateway.conductor.start(task_id)
        await gateway.conductor.commit(task_id, tokens_of("a"))
        await gateway.conductor.fail(task_id, code, "it broke")
        *_, failure, done = await read_events(response)
    assert done == "[DONE]"
    assert failure == {
        "error": {"message": "it broke", "type": "server_error", "param": None, "code": told, "task_id": task_id}
    }
    assert gateway.scheduler.cancelled == []


async def test_a_task_cancelled_by_somebody_else_ends_the_stream_with_its_code(gateway: Gateway) -> None:
    async with gateway.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        task_id = await gateway.accepted()
        await gateway.registry.cancel(task_id)
        *_, failure, done = await read_events(response)
    assert done == "[DONE]"
    assert failure["error"]["code"] == "task_cancelled"  # type: ignore[index]


async def test_a_deadline_that_passes_before_the_first_byte_is_504(gateway: Gateway) -> None:
    asking = await ask(gateway)
    task_id = await gateway.accepted()
    await gateway.conductor.start(task_id)
    await gateway.conductor.fail(task_id, "deadline_exceeded", "the deadline passed")
    answer = await asking
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert answer.headers["x-should-retry"] == "false"


async def test_a_failed_task_is_500_and_not_to_be_retried(gateway: Gateway) -> None:
    asking = await ask(gateway)
    task_id = await gateway.accepted()
    await gateway.conductor.start(task_id)
    await gateway.conductor.fail(task_id, "engine_fault", "it broke")
    answer = await asking
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "generation_failed"
    assert answer.headers["x-should-retry"] == "false"


async def test_a_refusal_has_a_real_status_even_for_streams(gateway: Gateway) -> None:
    for error, code in ((QueueFull("full", retry_after_s=2), "queue_full"), (NoCapacity("none"), "no_capacity")):
        gateway.scheduler.refuses_with = error
        answer = await gateway.client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == code
        assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_the_same_idempotency_key_leads_to_the_same_answer(gateway: Gateway) -> None:
    headers = {"Idempotency-Key": "k-1"}
    asking = asyncio.create_task(gateway.client.post("/v1/chat/completions", json=CHAT, headers=headers))
    task_id = await gateway.answer("once")
    first = await asking
    second = await gateway.client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert second.json() == first.json()
    assert second.headers["x-butterfly-task-id"] == task_id
    other = await gateway.client.post("/v1/chat/completions", json=CHAT | {"n": 1}, headers=headers)
    assert other.status_code == 422
    assert other.json()["error"]["code"] == "idempotency_key_reused"


async def test_a_request_with_an_idempotency_key_survives_its_connection(gateway: Gateway) -> None:
    headers = {"Idempotency-Key": "k-2"}
    async with gateway.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}, headers=headers):
        await gateway.accepted()
    asking = asyncio.create_task(
        gateway.client.post("/v1/chat/completions", json=CHAT | {"stream": True}, headers=headers)
    )
    await gateway.accepted(2)
    await gateway.answer("kept")
    assert "kept" in (await asking).text
    assert gateway.scheduler.cancelled == []


async def test_a_draining_server_takes_nothing_new_and_tells_open_streams_in_the_end(gateway: Gateway) -> None:
    async with gateway.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        await gateway.accepted()
        gateway.draining.set()
        refused = await gateway.client.post("/v1/chat/completions", json=CHAT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_draining")
        await gateway.clock.advance(20)
        *_, failure, done = await read_events(response)
    assert done == "[DONE]"
    assert failure["error"]["code"] == "server_draining"  # type: ignore[index]


async def test_every_series_of_the_gateway_is_shown(gateway: Gateway) -> None:
    asking = await ask(gateway)
    await gateway.answer("He", "llo")
    await asking
    shown = (await gateway.client.get("/metrics")).text
    labels = '{model="bytes",verified="false"}'
    for line in (
        f"butterfly_num_requests_running{labels} 0.0",
        f"butterfly_num_requests_waiting{labels} 0.0",
        f"butterfly_time_to_first_token_seconds_count{labels} 1.0",
        f"butterfly_inter_token_latency_seconds_count{labels} 3.0",
        f"butterfly_prompt_tokens_total{labels} 8.0",
        f"butterfly_generation_tokens_total{labels} 5.0",
    ):
        assert line in shown


async def test_many_streams_share_one_reader(gateway: Gateway) -> None:
    async def stream() -> str:
        answer = await gateway.client.post("/v1/chat/completions", json=CHAT | {"stream": True})
        events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events)

    asking = [asyncio.create_task(stream()) for _ in range(8)]
    await gateway.accepted(8)
    for number in range(1, 9):
        await gateway.answer(f"answer {number}", count=number)
    assert sorted(await asyncio.gather(*asking)) == [f"answer {number}" for number in range(1, 9)]
