"""The proof of an answer over a real port."""

from dataclasses import replace
from pathlib import Path

import pytest

from services.api.domain.answer_text import AnswerPart
from services.api.domain.openai_bodies import AnswerHead, Usage, closing_chunk, text_chunk, usage_chunk, whole_answer
from services.cli.receipt_check import read_keys
from shared.contracts.receipts import BundleBody
from shared.domain.bundle import check_bundle
from shared.domain.ids import Epoch, ModelId, TaskId
from shared.domain.tail_state import TailState
from shared.domain.task import FinishReason, SamplerParams, TaskKind, Verification
from shared.runtime.config import Config, CoordinationConfig
from tests.fakes.bundles import HonestRun
from tests.fakes.catalogue import node_view
from tests.fakes.tasks import make_task
from tests.integration.api.conftest import Gateway, read_events, running_gateway

CHAT: dict[str, object] = {"model": "bytes", "messages": [{"role": "user", "content": "hi"}]}


async def started(gateway: Gateway, *, owner: str = "anonymous", hold: bool = False) -> HonestRun:
    """A verified task that computes; every window comes from the run's honest nodes."""
    task = make_task(
        model_id=ModelId("bytes"),
        prompt_ids=tuple(b"hi"),
        sampler=SamplerParams(seed=7),
        verification=Verification.AUDIT,
        max_byzantine=1,
        hold=hold,
        owner=owner,
    )
    await gateway.registry.submit(
        task, idempotency_key=None, payload_hash="", attached=False, max_queue_size=9, max_queued_per_owner=9
    )
    await gateway.conductor.start(task.task_id)
    return HonestRun(
        task_id=task.task_id, prompt_ids=task.prompt_ids, sampler=task.sampler, token_ids=tuple(b"Hello, dear world")
    )


async def commit(gateway: Gateway, run: HonestRun, *windows: int) -> None:
    for window in windows:
        entry = run.entries()[window]
        await gateway.receipts.append(run.task_id, entry)
        await gateway.conductor.commit(run.task_id, entry.records)


async def test_disputes_are_counted_in_the_task_and_told_among_its_events(gateway: Gateway) -> None:
    run = await started(gateway)
    await commit(gateway, run, 0)
    path = f"/v1/tasks/{run.task_id}"
    assert (await gateway.client.get(path)).json()["verification"]["disputes"] == 0
    await gateway.registry.note_dispute(run.task_id, epoch=Epoch(1), window=1, stage=2)
    assert (await gateway.client.get(path)).json()["verification"]["disputes"] == 1
    await gateway.conductor.finish(run.task_id)
    async with gateway.client.stream("GET", f"{path}/events") as answer:
        assert {"window": 1, "stage": 2} in await read_events(answer)


async def receipt_of(gateway: Gateway, task_id: str) -> BundleBody:
    answer = await gateway.client.get(f"/v1/tasks/{task_id}/receipt")
    assert answer.status_code == 200
    return BundleBody.model_validate_json(answer.content)


async def test_the_receipt_of_a_finished_task_holds_and_covers_its_answer(gateway: Gateway) -> None:
    run = await started(gateway)
    await commit(gateway, run, 0, 1, 2, 3)
    await gateway.conductor.finish(run.task_id)
    bundle = (await receipt_of(gateway, run.task_id)).bundle()
    assert bundle == replace(run.bundle(), model_id=ModelId("bytes"))
    assert check_bundle(bundle).sentence.startswith("verified: mode audit, profile exact, f = 1: 11 tokens")
    assert bytes(bundle.answer_ids) == b"Hello, dear"


@pytest.mark.parametrize(("state", "revoked"), [(TailState.PASSED, False), (TailState.FAILED, True)])
async def test_what_became_of_the_tail_audit_is_told_with_its_receipts(
    gateway: Gateway, state: TailState, revoked: bool
) -> None:
    run = await started(gateway)
    await commit(gateway, run, 0, 1, 2, 3)
    await gateway.conductor.finish(run.task_id)
    before = (await gateway.client.get(f"/v1/tasks/{run.task_id}")).json()["verification"]
    assert (before["tail_audit"], before["revoked"], before["verified"]) == ("none", False, True)
    epoch = await gateway.registry.begin_tail_audit(run.task_id, epoch=Epoch(1))
    await gateway.receipts.keep_tail_audit(run.task_id, run.tail())
    pending = (await receipt_of(gateway, run.task_id)).bundle()
    assert (pending.tail_state, pending.tail) == (TailState.PENDING, None)
    await gateway.registry.note_tail_audit(run.task_id, epoch=epoch, state=state)
    after = (await gateway.client.get(f"/v1/tasks/{run.task_id}")).json()["verification"]
    assert (after["tail_audit"], after["revoked"], after["verified"]) == (state, revoked, not revoked)
    bundle = (await receipt_of(gateway, run.task_id)).bundle()
    assert (bundle.tail_state, bundle.tail) == (state, run.tail())
    assert check_bundle(bundle).sentence.startswith("revoked: verified" if revoked else "verified")


async def test_while_a_task_runs_its_receipt_covers_what_is_committed(gateway: Gateway) -> None:
    run = await started(gateway)
    await commit(gateway, run, 0, 1)
    await gateway.receipts.append(run.task_id, run.entries()[2])  # kept, but not committed yet
    bundle = (await receipt_of(gateway, run.task_id)).bundle()
    assert not bundle.complete
    assert len(bundle.answer_ids) == 3
    assert check_bundle(bundle).num_tokens == 3


async def test_before_the_first_commit_there_is_no_receipt_yet(gateway: Gateway) -> None:
    run = await started(gateway)
    answer = await gateway.client.get(f"/v1/tasks/{run.task_id}/receipt")
    assert (answer.status_code, answer.json()["code"]) == (404, "receipt_not_available")
    assert "ask again later" in answer.json()["detail"]


async def test_an_unverified_task_has_no_receipt(gateway: Gateway) -> None:
    body = {"kind": "chat", "model": "bytes", "input": {"messages": CHAT["messages"]}, "verification": "none"}
    task_id = (await gateway.client.post("/v1/tasks", json=body)).json()["task_id"]
    answer = await gateway.client.get(f"/v1/tasks/{task_id}/receipt")
    assert (answer.status_code, answer.json()["code"]) == (404, "receipt_not_available")


async def test_somebody_elses_receipt_is_not_found(gateway: Gateway) -> None:
    run = await started(gateway, owner="somebody else")
    await commit(gateway, run, 0)
    answer = await gateway.client.get(f"/v1/tasks/{run.task_id}/receipt")
    assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found")


async def test_a_receipt_goes_with_the_result(gateway: Gateway) -> None:
    run = await started(gateway)
    await commit(gateway, run, 0)
    await gateway.conductor.finish(run.task_id)
    await gateway.clock.advance(86_401)
    answer = await gateway.client.get(f"/v1/tasks/{run.task_id}/receipt")
    assert (answer.status_code, answer.json()["code"]) == (410, "result_expired")


async def test_an_unverified_answer_says_so_in_its_headers_and_in_its_last_chunk(gateway: Gateway) -> None:
    body = CHAT | {"stream": True, "butterfly": {"verification": "none"}}
    async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["x-butterfly-verified"] == "none"
        assert "x-butterfly-receipt" not in response.headers
        await gateway.answer("Hi")
        *_, last, done = await read_events(response)
    assert done == "[DONE]"
    assert isinstance(last, dict)
    assert (last["butterfly"]["verified"], last["butterfly"]["receipt"]) == (False, None)


def test_a_verified_answer_names_its_receipt() -> None:
    head = AnswerHead(
        kind=TaskKind.CHAT,
        task_id=TaskId("t"),
        created_s=0,
        model_id=ModelId("m"),
        fingerprint="bf_0",
        seed=0,
        verification=Verification.AUDIT,
        with_logprobs=False,
    )
    usage = Usage(1, 1)
    whole = whole_answer(head, AnswerPart("", ()), finish_reason=FinishReason.STOP, usage=usage)
    assert whole["butterfly"] == {
        "task_id": "t",
        "verification": "audit",
        "verified": True,
        "seed": 0,
        "receipt_url": "/v1/tasks/t/receipt",
    }
    told = {"task_id": "t", "seed": 0, "verification": "audit", "verified": True, "receipt": "/v1/tasks/t/receipt"}
    assert closing_chunk(head, FinishReason.STOP, include_usage=False)["butterfly"] == told
    assert usage_chunk(head, usage)["butterfly"] == told
    assert "receipt" not in str(text_chunk(head, AnswerPart("", ()), include_usage=False))


async def test_a_task_tells_its_committed_windows_and_who_signed_them(gateway: Gateway) -> None:
    run = await started(gateway)
    await commit(gateway, run, 0, 1)
    await gateway.receipts.append(run.task_id, run.entries()[2])  # kept, but not committed yet
    task = (await gateway.client.get(f"/v1/tasks/{run.task_id}")).json()
    signers = sorted({node_id for entry in run.entries()[:2] for node_id in entry.keys})
    assert len(signers) > 1
    assert (task["verification"]["windows"], task["verification"]["nodes"]) == (2, signers)
    assert task["progress"]["windows"] == 2
    (listed,) = (await gateway.client.get("/v1/tasks")).json()["data"]
    assert listed["verification"]["windows"] is None  # nobody looked


async def test_the_keys_of_the_cluster_are_what_the_offline_check_reads(gateway: Gateway, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes((await gateway.client.get("/v1/keys")).content)
    trusted = read_keys(file)
    run = await started(gateway)
    await commit(gateway, run, 0, 1, 2, 3)
    await gateway.conductor.finish(run.task_id)
    bundle = (await receipt_of(gateway, run.task_id)).bundle()
    assert check_bundle(bundle, trusted=trusted).coordinator_key == trusted.coordinator


async def test_an_audited_stream_shows_committed_tokens_and_ends_with_its_receipt() -> None:
    audited = Config(coordination=CoordinationConfig(default_verification="audit"))
    async with running_gateway(audited) as gateway:
        gateway.nodes.replace(*(node_view(node_id) for node_id in ("node-a", "node-b", "node-c")))
        async with gateway.client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
            task_id = response.headers["x-butterfly-task-id"]
            assert response.headers["x-butterfly-verified"] == "audit"
            assert response.headers["x-butterfly-receipt"] == f"/v1/tasks/{task_id}/receipt"
            await gateway.answer("Hel", "lo")
            *chunks, last, done = await read_events(response)
        assert done == "[DONE]"
        assert isinstance(last, dict)
        told = last["butterfly"]
        assert (told["verification"], told["verified"]) == ("audit", True)
        assert told["receipt"] == f"/v1/tasks/{task_id}/receipt"
        assert "receipt" not in str(chunks)


@pytest.mark.parametrize("outcome", [TailState.PASSED, TailState.FAILED])
async def test_of_an_answer_that_is_held_back_nothing_is_shown_before_its_audit_has_passed(
    gateway: Gateway, outcome: TailState
) -> None:
    run = await started(gateway, hold=True)
    path = f"/v1/tasks/{run.task_id}"

    async def hidden() -> bool:
        receipt = await gateway.client.get(f"{path}/receipt")
        result = await gateway.client.get(f"{path}/result")
        shown = (result.json().get("choices") or [{"text": ""}])[0]["text"]
        return (receipt.status_code, receipt.json().get("code"), shown) == (404, "receipt_not_available", "")

    await commit(gateway, run, 0, 1)
    assert await hidden()
    await commit(gateway, run, 2, 3)
    await gateway.conductor.finish(run.task_id)
    assert await hidden()
    task = (await gateway.client.get(path)).json()
    assert (task["status"], task["result"], task["verification"]["verified"]) == ("aggregating", None, False)
    epoch = await gateway.registry.begin_tail_audit(run.task_id, epoch=Epoch(1))
    await gateway.receipts.keep_tail_audit(run.task_id, run.tail())
    await gateway.registry.note_tail_audit(
        run.task_id, epoch=epoch, state=outcome, error_code="dispute_unresolved", error="another result"
    )
    task = (await gateway.client.get(path)).json()
    has_passed = outcome is TailState.PASSED
    assert task["verification"]["verified"] is has_passed
    assert await hidden() is not has_passed
    if has_passed:
        assert task["result"]["choices"][0]["text"] == "Hello, dear"
        assert check_bundle((await receipt_of(gateway, run.task_id)).bundle()).tail_nodes
    else:
        assert (task["status"], task["error"]["code"]) == ("failed", "dispute_unresolved")
        assert task["result"]["usage"]["completion_tokens"] == 0
    async with gateway.client.stream("GET", f"{path}/events") as answer:
        told = str(await read_events(answer))
    assert ("token_ids" in told) is has_passed
