"""The task API over a real port."""

import asyncio
import re

import httpx

from shared.contracts.scheduler import SubmitTask
from shared.domain.task_state import TaskState
from tests.fakes.catalogue import tokens_of
from tests.fakes.tasks import make_task
from tests.integration.api.conftest import Gateway

TASK: dict[str, object] = {
    "kind": "chat",
    "model": "bytes",
    "input": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "stop": "END"},
    "priority": 5,
    "deadline_s": 900,
    "metadata": {"team": "a"},
}
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


async def submit(gateway: Gateway, **changes: object) -> str:
    answer = await gateway.client.post("/v1/tasks", json=TASK | changes)
    assert answer.status_code == 202
    return str(answer.json()["task_id"])


async def events_of(response: httpx.Response) -> list[tuple[str, str, str]]:
    """(name, id, data) of each event."""
    found, name, entry_id = [], "", ""
    async for line in response.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "id":
            entry_id = value
        elif field == "data":
            found.append((name, entry_id, value))
    return found


async def test_an_accepted_task_is_202_with_its_place_and_its_resource(gateway: Gateway) -> None:
    answer = await gateway.client.post("/v1/tasks", json=TASK)
    task = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/tasks/{task['task_id']}"
    assert answer.headers["retry-after"] == "1"
    assert task["object"] == "task"
    assert task["status"] == "queued"
    assert (task["kind"], task["model"], task["priority"], task["metadata"]) == ("chat", "bytes", 5, {"team": "a"})
    assert (task["attempt"], task["epoch"]) == (0, 0)
    assert RFC_3339.fullmatch(task["created_at"])
    assert RFC_3339.fullmatch(task["deadline_at"])
    assert (task["started_at"], task["finished_at"], task["result_expires_at"]) == (None, None, None)
    assert task["progress"] == {"prompt_tokens": 8, "drafted": 0, "committed": 0, "max_tokens": 20, "windows": 0}
    assert task["verification"]["mode"] == "none"
    assert task["verification"]["verified"] is False
    assert (task["result"], task["error"]) == (None, None)
    assert task["links"]["cancel"] == f"/v1/tasks/{task['task_id']}/cancel"
    submission = gateway.scheduler.submissions[0]
    assert not submission.attached
    assert not submission.require_capacity


async def test_a_finished_task_has_its_result_inline_and_at_its_own_path(gateway: Gateway) -> None:
    task_id = await submit(gateway)
    pending = await gateway.client.get(f"/v1/tasks/{task_id}/result")
    assert (pending.status_code, pending.headers["retry-after"]) == (202, "1")
    await gateway.answer("Hello END")
    task = (await gateway.client.get(f"/v1/tasks/{task_id}")).json()
    assert task["status"] == "completed"
    assert task["result"]["object"] == "chat.completion"
    assert task["result"]["choices"][0]["message"]["content"] == "Hello "
    assert task["result"]["choices"][0]["finish_reason"] == "stop"
    assert task["result"]["usage"] == {"prompt_tokens": 8, "completion_tokens": 9, "total_tokens": 17}
    assert RFC_3339.fullmatch(task["result_expires_at"])
    result = await gateway.client.get(f"/v1/tasks/{task_id}/result")
    assert result.status_code == 200
    assert result.json() == task["result"]


async def test_an_expired_result_is_410_while_the_task_is_still_known(gateway: Gateway) -> None:
    task_id = await submit(gateway, result_ttl_s=60)
    await gateway.answer("x")
    await gateway.clock.advance(61)
    for place in ("result", "events"):
        gone = await gateway.client.get(f"/v1/tasks/{task_id}/{place}")
        assert (gone.status_code, gone.json()["code"]) == (410, "result_expired")
    task = await gateway.client.get(f"/v1/tasks/{task_id}")
    assert (task.status_code, task.json()["result"]) == (200, None)


async def test_a_cancelled_task_keeps_what_was_committed(gateway: Gateway) -> None:
    task_id = await submit(gateway)
    await gateway.conductor.start(await gateway.accepted())
    await gateway.conductor.commit(await gateway.accepted(), tokens_of("par"))
    cancelled = await gateway.client.post(f"/v1/tasks/{task_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    again = await gateway.client.post(f"/v1/tasks/{task_id}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    result = (await gateway.client.get(f"/v1/tasks/{task_id}/result")).json()
    assert result["choices"][0]["message"]["content"] == "par"
    assert result["choices"][0]["finish_reason"] is None
    assert result["error"]["code"] == "task_cancelled"


async def test_a_failed_task_says_why(gateway: Gateway) -> None:
    task_id = await submit(gateway)
    await gateway.conductor.start(await gateway.accepted())
    await gateway.conductor.fail(await gateway.accepted(), "deadline_exceeded", "too late")
    task = (await gateway.client.get(f"/v1/tasks/{task_id}")).json()
    assert task["status"] == "failed"
    assert task["error"] == {"code": "deadline_exceeded", "message": "too late", "retryable": False}


async def test_waiting_returns_as_soon_as_the_task_ends(gateway: Gateway) -> None:
    task_id = await submit(gateway)
    waiting = asyncio.create_task(gateway.client.get(f"/v1/tasks/{task_id}?wait=30"))
    await gateway.answer("x")
    assert (await waiting).json()["status"] == "completed"


async def test_waiting_ends_by_itself(gateway: Gateway) -> None:
    task_id = await submit(gateway)
    assert (await gateway.client.get(f"/v1/tasks/{task_id}?wait=1")).json()["status"] == "queued"


async def test_the_same_idempotency_key_gives_the_same_task(gateway: Gateway) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await gateway.client.post("/v1/tasks", json=TASK, headers=headers)
    second = await gateway.client.post("/v1/tasks", json=TASK, headers=headers)
    assert (second.status_code, second.json()["task_id"]) == (202, first.json()["task_id"])
    await gateway.answer("x")
    third = await gateway.client.post("/v1/tasks", json=TASK, headers=headers)
    assert (third.status_code, third.json()["status"]) == (200, "completed")
    other = await gateway.client.post("/v1/tasks", json=TASK | {"priority": 6}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_tasks_are_listed_newest_first_page_by_page(gateway: Gateway) -> None:
    task_ids = [await submit(gateway) for _ in range(5)]
    seen, after = [], ""
    while True:
        page = (await gateway.client.get(f"/v1/tasks?limit=2&after={after}")).json()
        assert page["object"] == "list"
        seen += [task["task_id"] for task in page["data"]]
        assert page["has_more"] is (page["next"] is not None)
        if not page["has_more"]:
            break
        after = page["next"]
    assert seen == sorted(task_ids, reverse=True)
    await gateway.answer("x")
    done = (await gateway.client.get("/v1/tasks?status=completed,failed&model=bytes")).json()
    assert [task["status"] for task in done["data"]] == ["completed"]
    assert (await gateway.client.get("/v1/tasks?model=other")).json()["data"] == []


async def test_events_tell_everything_until_the_end_and_resume(gateway: Gateway) -> None:
    task_id = await submit(gateway)
    await gateway.answer("🦋".encode()[:1], "🦋".encode()[1:])
    async with gateway.client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = await events_of(response)
    names = [name for name, _, _ in events]
    assert names == ["state"] * (len(names) - 3) + ["commit", "commit", "end"]
    commits = [data for name, _, data in events if name == "commit"]
    assert commits == ['{"first":0,"token_ids":[240],"text":""}', '{"first":1,"token_ids":[159,166,139],"text":"🦋"}']
    assert events[-1][2] == '{"status":"completed","finish_reason":"stop","error":null}'
    headers = {"Last-Event-ID": events[-3][1]}
    async with gateway.client.stream("GET", f"/v1/tasks/{task_id}/events", headers=headers) as response:
        assert await events_of(response) == events[-2:]
    async with gateway.client.stream("GET", f"/v1/tasks/{task_id}/events?after=nonsense") as response:
        assert await events_of(response) == events


async def test_events_of_a_running_task_come_as_they_happen_and_leaving_cancels_nothing(gateway: Gateway) -> None:
    task_id = await submit(gateway)
    async with gateway.client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
        lines = response.aiter_lines()
        await gateway.conductor.start(await gateway.accepted())
        await gateway.conductor.commit(await gateway.accepted(), tokens_of("now"))
        async for line in lines:
            if '"text":"now"' in line:
                break
    await gateway.conductor.commit(await gateway.accepted(), tokens_of("later"))
    await gateway.conductor.finish(await gateway.accepted())
    assert gateway.scheduler.cancelled == []


async def test_event_streams_say_bye_when_the_server_stops(gateway: Gateway) -> None:
    task_id = await submit(gateway)
    async with gateway.client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
        lines = response.aiter_lines()
        async for line in lines:
            if line.startswith("event: state"):
                break
        gateway.draining.set()
        rest = [line async for line in lines]
    assert "event: bye" in rest
    assert (await gateway.registry.record(await gateway.accepted())).state is TaskState.QUEUED


async def test_a_task_of_somebody_else_does_not_exist(gateway: Gateway) -> None:
    foreign = make_task(owner="berta")
    await gateway.scheduler.submit(SubmitTask(task=foreign))
    for method, path in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("POST", "/cancel")):
        answer = await gateway.client.request(method, f"/v1/tasks/{foreign.task_id}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")
    assert (await gateway.client.get("/v1/tasks")).json()["data"] == []
    assert gateway.scheduler.cancelled == []
