from dataclasses import asdict
from pathlib import Path

import httpx
import pytest

from shared.contracts.partitioner import ModelList, PlanResponse, StageFileInfo
from shared.llama.cutting import cut_stage, open_model, vocabulary_file
from shared.llama.token_table import token_bytes
from tests.integration.partitioner.conftest import nodes, until_ready

AUDIT: dict[str, object] = {"verification": "audit", "max_byzantine": 1}
STAGE = "/models/tiny/stages/2-4"


async def test_the_catalogue_lists_models_and_refused_files(control: httpx.AsyncClient) -> None:
    listed = ModelList.model_validate_json((await control.get("/models")).content)
    assert [(model.model_id, model.num_layers) for model in listed.models] == [("tiny", 6)]
    assert [refused.file for refused in listed.refused] == ["bad.gguf"]
    assert (await control.get("/models/tiny")).json()["root"] == listed.models[0].root


async def test_a_rescan_finds_new_files(control: httpx.AsyncClient, models_dir: Path) -> None:
    (models_dir / "bad.gguf").unlink()
    (models_dir / "worse.gguf").write_bytes(b"PK")
    listed = ModelList.model_validate_json((await control.post("/models/rescan")).content)
    assert [refused.file for refused in listed.refused] == ["worse.gguf"]


@pytest.mark.parametrize("path", ["/models/nothing", "/models/nothing/stages/0-1", "/models/..%2Fetc/vocabulary"])
async def test_an_unknown_model_is_404(control: httpx.AsyncClient, path: str) -> None:
    answer = await control.get(path)
    assert answer.status_code == 404


async def test_a_stage_comes_whole_and_as_announced(control: httpx.AsyncClient, models_dir: Path) -> None:
    model = open_model(models_dir / "tiny.gguf")
    stage = cut_stage(model, 2, 4)
    info = StageFileInfo.model_validate_json((await control.get(f"{STAGE}/info")).content)
    assert info == StageFileInfo(
        model_id=info.model_id,
        model_root=model.root(),
        start=2,
        end=4,
        size_bytes=stage.size_bytes,
        stage_digest=stage.stage_digest(),
        n_embd=128,
        num_layers=6,
    )
    answer = await control.get(STAGE)
    assert answer.status_code == 200
    assert answer.headers["ETag"] == f'"{stage.stage_digest()}"'
    assert answer.headers["Content-Length"] == str(stage.size_bytes)
    assert answer.content == b"".join(stage.read(0, stage.size_bytes))


async def test_a_range_comes_as_that_part(control: httpx.AsyncClient) -> None:
    whole = (await control.get(STAGE)).content
    answer = await control.get(STAGE, headers={"Range": "bytes=1000-2999"})
    assert answer.status_code == 206
    assert answer.headers["Content-Range"] == f"bytes 1000-2999/{len(whole)}"
    assert answer.content == whole[1_000:3_000]
    assert (await control.get(STAGE, headers={"Range": "bytes=-5"})).content == whole[-5:]
    beyond = await control.get(STAGE, headers={"Range": f"bytes={len(whole)}-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(whole)}")


async def test_a_range_of_another_content_starts_over(control: httpx.AsyncClient) -> None:
    first = await control.get(STAGE, headers={"Range": "bytes=10-19"})
    same = await control.get(STAGE, headers={"Range": "bytes=10-19", "If-Range": first.headers["ETag"]})
    other = await control.get(STAGE, headers={"Range": "bytes=10-19", "If-Range": '"of yesterday"'})
    assert [answer.status_code for answer in (first, same, other)] == [206, 206, 200]


async def test_vocabulary_and_token_bytes_come_with_their_etags(control: httpx.AsyncClient, models_dir: Path) -> None:
    model = open_model(models_dir / "tiny.gguf")
    vocabulary = vocabulary_file(model)
    expected = {
        "vocabulary": b"".join(vocabulary.read(0, vocabulary.size_bytes)),
        "token-bytes": token_bytes(model),
    }
    for name, content in expected.items():
        answer = await control.get(f"/models/tiny/{name}")
        assert answer.content == content
        again = await control.get(f"/models/tiny/{name}", headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("layers", ["0-7", "3-3", "5-2"])
async def test_layers_that_are_not_there_are_refused(control: httpx.AsyncClient, layers: str) -> None:
    answer = await control.get(f"/models/tiny/stages/{layers}")
    assert answer.status_code == 422
    assert "no range of the 6 layers" in answer.json()["detail"]


async def test_layers_that_are_no_numbers_are_refused(control: httpx.AsyncClient) -> None:
    for layers in ("a-b", "0-x", "9" * 5_000 + "-1"):
        assert (await control.get(f"/models/tiny/stages/{layers}")).status_code == 422


async def test_workers_fetch_stages_without_the_service_token_and_nothing_else(worker: httpx.AsyncClient) -> None:
    refused = [
        await worker.get("/models"),
        await worker.get("/models/tiny"),
        await worker.post("/models/rescan"),
        await worker.get("/models/tiny/vocabulary"),
        await worker.get("/models/tiny/token-bytes"),
        await worker.post("/plans", json={"model_id": "tiny", "nodes": []}),
        await worker.delete("/plans"),
    ]
    assert {answer.status_code for answer in refused} == {401}
    await until_ready(worker, f"{STAGE}/info", {})
    assert (await worker.get(f"{STAGE}/info")).status_code == 200
    assert (await worker.get(STAGE, headers={"Range": "bytes=0-3"})).content == b"GGUF"


async def test_a_plan_comes_with_its_model_and_then_from_the_cache(control: httpx.AsyncClient) -> None:
    body = {"model_id": "tiny", "nodes": list(reversed(nodes(4)))}
    first = PlanResponse.model_validate_json((await control.post("/plans", json=body)).content)
    again = PlanResponse.model_validate_json((await control.post("/plans", json=body)).content)
    assert (first.cached, again.cached, first.plan) == (False, True, again.plan)
    assert first.model.model_id == "tiny"
    assert [seat.node_id for seat in first.plan.lanes[0].partitions] == ["w0", "w1"]  # partition.num_stages = 2
    assert first.plan.strategy == "load_balanced"
    assert first.plan.spares == (("w2", "w3"), ("w2", "w3"))


async def test_an_audited_session_gets_two_lanes_over_the_same_stages(control: httpx.AsyncClient) -> None:
    answer = await control.post("/plans", json={"model_id": "tiny", "nodes": nodes(4), "seating": AUDIT})
    plan = PlanResponse.model_validate(answer.json()).plan
    first, second = plan.lanes
    assert [seat.layers for seat in first.partitions] == [seat.layers for seat in second.partitions]
    assert len({seat.node_id for seat in plan.seats}) == 4
    assert (plan.blind, plan.spare) == (True, 2)
    kept = AUDIT | {"with_referee": True, "is_recovery": True, "keep": [asdict(lane) for lane in plan.lanes]}
    answer = await control.post("/plans", json={"model_id": "tiny", "nodes": nodes(4), "seating": kept})
    assert PlanResponse.model_validate(answer.json()).plan.lanes[:2] == plan.lanes


async def test_plans_are_forgotten_on_request(control: httpx.AsyncClient) -> None:
    body = {"model_id": "tiny", "nodes": nodes(3)}
    await control.post("/plans", json=body)
    assert (await control.delete("/plans", params={"model_id": "other"})).json() == {"dropped": 0}
    assert (await control.delete("/plans", params={"model_id": "tiny"})).json() == {"dropped": 1}
    assert not (await control.post("/plans", json=body)).json()["cached"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"nodes": []}, 503, "no_capacity"),
        ({"nodes": nodes(2, memory_bytes=400_000)}, 503, "no_capacity"),
        ({"nodes": nodes(2, memory_bytes=10)}, 422, "invalid_plan_input"),
        ({"nodes": nodes(1) * 2}, 422, "invalid_plan_input"),
        ({"nodes": nodes(1, speed=-1)}, 422, "invalid_plan_input"),
        ({"nodes": nodes(1), "strategy": "magic"}, 422, "invalid_plan_input"),
        ({"nodes": nodes(9), "num_stages": 7}, 422, "invalid_plan_input"),
        ({"nodes": nodes(2), "seating": AUDIT}, 503, "verification_unavailable"),
        ({"nodes": nodes(9), "seating": AUDIT | {"max_byzantine": 0}}, 422, "invalid_plan_input"),
        ({"nodes": nodes(1), "model_id": "nothing"}, 404, "model_not_found"),
        ({"nodes": nodes(1), "surprise": 1}, 422, "validation_failed"),
    ],
)
async def test_a_question_without_an_answer_is_told_by_its_code(
    control: httpx.AsyncClient, body: dict[str, object], status: int, code: str
) -> None:
    answer = await control.post("/plans", json={"model_id": "tiny", **body})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_node_whose_speed_is_no_number_is_refused(control: httpx.AsyncClient) -> None:
    node = '{"node_id": "a", "memory_bytes": 1, "speed": NaN, "slots": 1, "context_tokens": 1}'
    text = f'{{"model_id": "tiny", "nodes": [{node}]}}'
    answer = await control.post("/plans", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


async def test_a_plan_is_rated(control: httpx.AsyncClient) -> None:
    plan = (await control.post("/plans", json={"model_id": "tiny", "nodes": nodes(3)})).json()["plan"]
    answer = await control.post("/plans/quality", json={"plan": plan, "nodes": nodes(3)})
    quality = answer.json()["quality"]
    assert quality["network_bytes_per_token"] == 128 * 4 + 4
    assert 0.5 <= quality["balance"] <= 1
    assert len(quality["stages"]) == 2


async def test_a_preview_tells_the_plan_and_what_it_will_do(control: httpx.AsyncClient) -> None:
    wanted = {"model_id": "tiny", "nodes": nodes(3), "strategy": "topology_aware", "objective": "latency"}
    answer = await control.post("/plans/preview", json={"wanted": wanted, "sequences": 4})
    assert answer.status_code == 200
    told = answer.json()
    assert told["prediction"]["tokens_per_s"] > 0
    assert told["prediction"]["is_measured"] is False
    assert [seat["node_id"] for seat in told["prediction"]["seats"]] == [
        seat["node_id"] for seat in told["pipelines"][0]["plan"]["lanes"][0]["partitions"]
    ]


async def test_the_plan_that_stands_is_not_worth_leaving(control: httpx.AsyncClient) -> None:
    wanted = {"model_id": "tiny", "nodes": nodes(3)}
    present = (await control.post("/plans", json=wanted)).json()["plan"]
    answer = await control.post("/plans/advice", json={"wanted": wanted, "present": present})
    assert answer.json()["advice"] == {"worth_it": False, "gain": 0.0}


async def test_the_pipelines_of_a_model_are_told_with_their_rates_and_forgotten_on_demand(
    control: httpx.AsyncClient,
) -> None:
    audit = {"verification": "audit", "max_byzantine": 1}
    wanted = {"model_id": "tiny", "nodes": nodes(7), "num_stages": 2, "seating": audit}
    answer = await control.post("/plans/pipelines", json=wanted)
    assert answer.status_code == 200
    pipelines = answer.json()["pipelines"]
    assert len(pipelines) == 2
    assert all(pipeline["tokens_per_s"] > 0 for pipeline in pipelines)
    assert (await control.delete("/plans")).json() == {"dropped": 1}
    refused = await control.post("/plans/pipelines", json={**wanted, "nodes": nodes(2)})
    assert (refused.status_code, refused.json()["code"]) == (503, "verification_unavailable")
