"""Questions about plans over a real port."""

from dataclasses import replace

import pytest

from shared.contracts.coordinator import NodeView
from shared.domain.errors import PeerUnavailable
from shared.domain.measured import CallTime, Measured, Pace, StageTimes
from shared.domain.session import NodeState
from tests.fakes.catalogue import BYTE_MODEL, node_view
from tests.integration.api.conftest import Gateway, running_gateway

PREVIEW, QUALITY = "/v1/plans/preview", "/v1/plans/quality"


def large(node_id: str, state: NodeState = NodeState.READY) -> NodeView:
    view = node_view(node_id, state)
    return view.model_copy(update={"capability": replace(view.capability, memory_bytes=1 << 30, host=node_id)})


def ready(gateway: Gateway, count: int) -> None:
    """One more is there, and not ready."""
    gateway.nodes.replace(
        *(large(f"node-{letter}") for letter in "abcdefg"[:count]), large("node-z", NodeState.SUSPECT)
    )


async def test_a_preview_tells_who_would_hold_what_and_what_to_expect(gateway: Gateway) -> None:
    ready(gateway, 3)
    answer = await gateway.client.post(PREVIEW, json={"model": "bytes", "stages": 3, "sequences": 2})
    assert answer.status_code == 200
    told = answer.json()
    (pipeline,) = told["pipelines"]
    (lane,) = pipeline["lanes"]
    assert [seat["node_id"] for seat in lane] == ["node-a", "node-b", "node-c"]
    assert [lane[0]["start"], *(seat["end"] for seat in lane)][::3] == [0, 6]
    predicted = told["predicted"]
    assert predicted["tokens_per_s"] == predicted["verified_tokens_per_s"] > 0
    assert min(predicted["first_token_ms"], predicted["token_ms"]) > 0
    assert predicted["is_measured"] is False
    for node in told["nodes"]:
        assert 0 < node["used_bytes"] < node["memory_bytes"]
    assert 0 < told["quality"]["balance"] <= 1


async def test_a_preview_goes_by_what_stages_were_found_to_take(gateway: Gateway) -> None:
    calls = (CallTime(1, 0.01, 0.01, 1),)
    measured = Measured(Pace(1e-10, 3e-11), stages=(StageTimes(BYTE_MODEL.root, 0, 3, calls, calls, calls),))
    view = large("node-a")
    gateway.nodes.replace(
        view.model_copy(update={"capability": replace(view.capability, measured=measured)}), large("node-b")
    )
    told = (await gateway.client.post(PREVIEW, json={"model": "bytes", "stages": 2})).json()
    assert told["predicted"]["is_timed"] is True


async def test_a_preview_of_verified_sessions_has_the_lanes_of_their_mode() -> None:
    async with running_gateway() as gateway:
        ready(gateway, 3)
        wish = {"mode": "audit", "max_byzantine": 1}
        told = (await gateway.client.post(PREVIEW, json={"model": "bytes", "stages": 3, "verification": wish})).json()
    (pipeline,) = told["pipelines"]
    assert len(pipeline["lanes"]) == 2
    assert told["predicted"]["audit_ms_per_token"] > 0
    assert {seat["lane"] for seat in told["seats"]} == {0, 1}


async def test_many_nodes_make_several_pipelines(gateway: Gateway) -> None:
    ready(gateway, 7)
    told = (await gateway.client.post(PREVIEW, json={"model": "bytes", "stages": 3, "verification": "audit"})).json()
    assert len(told["pipelines"]) == 2


async def test_the_lanes_of_a_preview_can_be_changed_by_hand_and_rated(gateway: Gateway) -> None:
    ready(gateway, 3)
    told = (await gateway.client.post(PREVIEW, json={"model": "bytes", "stages": 2})).json()
    lanes = told["pipelines"][0]["lanes"]
    rated = (await gateway.client.post(QUALITY, json={"model": "bytes", "lanes": lanes})).json()
    assert rated["quality"] == told["quality"]
    lanes[0][0]["end"] = lanes[0][1]["start"] = 1
    uneven = (await gateway.client.post(QUALITY, json={"model": "bytes", "lanes": lanes})).json()
    assert uneven["quality"]["balance"] < rated["quality"]["balance"]


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"model": "other"}, 404, "model_not_found", "other"),
        ({"model": "bytes", "strategy": "best"}, 422, "invalid_plan_input", "known are: load_balanced, uniform"),
        ({"model": "bytes", "stages": 7}, 422, "invalid_plan_input", "6 layers"),
        ({"model": "bytes", "stages": 0}, 422, "validation_failed", "stages"),
        ({"model": "bytes", "sequences": True}, 422, "validation_failed", "sequences"),
        ({"model": "bytes", "colour": "red"}, 422, "validation_failed", "colour"),
        ({"model": "bytes", "verification": "maybe"}, 422, "validation_failed", "verification.mode"),
        (
            {"model": "bytes", "verification": {"mode": "audit", "max_byzantine": 9}},
            422,
            "validation_failed",
            "at most 1",
        ),
        ({"model": "bytes", "verification": "audit"}, 503, "verification_unavailable", "3 nodes"),
    ],
)
async def test_what_cannot_be_previewed_is_told_with_its_reason(
    gateway: Gateway, body: dict[str, object], status: int, code: str, words: str
) -> None:
    answer = await gateway.client.post(PREVIEW, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert words in answer.text


@pytest.mark.parametrize(
    ("lane", "words"),
    [
        ([("node-a", 0, 3)], "ends at layer 3 of 6"),
        ([("node-a", 0, 4), ("node-b", 3, 6)], "do not continue at 4"),
        ([("node-a", 0, 2), ("node-b", 3, 6)], "do not continue at 2"),
        ([("node-a", 0, 3), ("node-q", 3, 6)], "node-q"),
        ([("node-a", 0, 3), ("node-z", 3, 6)], "node-z"),
        ([], "lanes.0"),
    ],
)
async def test_a_plan_by_hand_that_is_none_is_refused(
    gateway: Gateway, lane: list[tuple[str, int, int]], words: str
) -> None:
    ready(gateway, 2)
    seats = [{"node_id": node_id, "start": start, "end": end} for node_id, start, end in lane]
    answer = await gateway.client.post(QUALITY, json={"model": "bytes", "lanes": [seats]})
    assert answer.status_code == 422
    assert words in answer.text


async def test_without_nodes_there_is_no_plan(gateway: Gateway) -> None:
    gateway.nodes.replace()
    answer = await gateway.client.post(PREVIEW, json={"model": "bytes"})
    assert (answer.status_code, answer.json()["code"]) == (503, "no_capacity")
    gateway.nodes.refuses_with = PeerUnavailable("coordinator cannot be reached")
    answer = await gateway.client.post(PREVIEW, json={"model": "bytes"})
    assert (answer.status_code, answer.json()["code"]) == (503, "peer_unavailable")
