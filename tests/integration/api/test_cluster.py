"""Models, nodes, state and health over a real port."""

from services.api.ports import ServiceHealth
from shared.domain.errors import PeerUnavailable
from shared.domain.session import NodeState
from shared.runtime.config import ApiConfig, Config
from tests.fakes.catalogue import node_view
from tests.integration.api.conftest import Gateway, running_gateway


async def test_models_are_listed_as_openai_clients_want_them(gateway: Gateway) -> None:
    listed = (await gateway.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert listed["data"] == [
        {
            "id": "bytes",
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "butterfly",
            "butterfly": {
                "layers": 6,
                "context": 2_048,
                "bytes": 10_000,
                "profile": "exact",
                "verification": ["none"],
                "ready": True,
            },
        }
    ]
    assert (await gateway.client.get("/v1/models/bytes")).json() == listed["data"][0]


async def test_a_model_that_fits_nowhere_is_listed_as_not_ready(gateway: Gateway) -> None:
    gateway.nodes.replace(node_view(state=NodeState.SUSPECT))
    (model,) = (await gateway.client.get("/v1/models")).json()["data"]
    assert model["butterfly"]["ready"] is False


async def test_verification_is_offered_once_enough_nodes_are_ready(gateway: Gateway) -> None:
    ready = [node_view(name) for name in ("node-a", "node-b", "node-c")]
    for nodes, offered in ((ready, ["none", "audit", "quorum"]), (ready[:2], ["none"])):
        gateway.nodes.replace(*nodes, node_view("node-d", state=NodeState.SUSPECT))
        (model,) = (await gateway.client.get("/v1/models")).json()["data"]
        assert model["butterfly"]["verification"] == offered


async def test_nodes_are_shown_with_the_layers_they_hold(gateway: Gateway) -> None:
    listed = (await gateway.client.get("/v1/nodes")).json()
    assert listed["object"] == "list"
    (node,) = listed["data"]
    assert (node["node_id"], node["state"], node["address"]) == ("node-a", "ready", "http://127.0.0.1:8090")
    assert node["capability"]["memory_bytes"] == 1_000_000
    assert node["stages"] == [{"model": "bytes", "start": 0, "end": 3, "lane": 0}]
    assert node["heartbeat_age_ms"] == 120
    assert (await gateway.client.get("/v1/nodes/node-a")).json() == node
    missing = await gateway.client.get("/v1/nodes/node-z")
    assert (missing.status_code, missing.json()["code"]) == (404, "node_not_found")


async def test_nodes_are_503_while_the_coordinator_is_away(gateway: Gateway) -> None:
    gateway.nodes.refuses_with = PeerUnavailable("coordinator cannot be reached")
    answer = await gateway.client.get("/v1/nodes")
    assert (answer.status_code, answer.json()["code"]) == (503, "peer_unavailable")
    assert (await gateway.client.get("/v1/models")).status_code == 200


async def test_the_state_is_one_snapshot_made_once_a_second(gateway: Gateway) -> None:
    gateway.services.answers = {
        "scheduler": ServiceHealth(ready=True),
        "metrics": ServiceHealth(ready=False, error="away"),
    }
    state = (await gateway.client.get("/v1/state")).json()
    assert state["schema"] == 1
    assert state["services"] == {
        "api": {"ready": True, "error": None},
        "scheduler": {"ready": True, "error": None},
        "metrics": {"ready": False, "error": "away"},
    }
    assert [node["node_id"] for node in state["nodes"]] == ["node-a"]
    assert [model["id"] for model in state["models"]] == ["bytes"]
    assert state["queue"] == {"depth": 0, "oldest_age_s": None, "by_priority": {}}
    assert state["tasks"] == {"running": 0}
    await gateway.client.get("/v1/state")
    assert gateway.services.num_asked == 1
    await gateway.clock.advance(1)
    await gateway.client.get("/v1/state")
    assert gateway.services.num_asked == 2


async def test_the_state_is_shown_while_everything_else_is_away(gateway: Gateway) -> None:
    away = PeerUnavailable("cannot be reached")
    gateway.nodes.refuses_with = gateway.catalogue.refuses_with = away
    state = (await gateway.client.get("/v1/state")).json()
    assert (state["nodes"], state["models"]) == ([], [])


async def test_health_has_the_names_that_others_use(gateway: Gateway) -> None:
    for path in ("/livez", "/healthz", "/readyz", "/health", "/startupz"):
        assert (await gateway.client.get(path)).status_code == 200
        assert (await gateway.client.head(path)).status_code == 200
    gateway.draining.set()
    assert (await gateway.client.get("/health")).status_code == 503
    assert (await gateway.client.get("/healthz")).status_code == 200


async def test_browsers_of_named_origins_alone_may_call(gateway: Gateway) -> None:
    preflight = {"Origin": "http://ui.example", "Access-Control-Request-Method": "POST"}
    answer = await gateway.client.options("/v1/chat/completions", headers=preflight)
    assert "access-control-allow-origin" not in answer.headers
    async with running_gateway(Config(api=ApiConfig(cors_origins=("http://ui.example",)))) as open_gateway:
        answer = await open_gateway.client.options("/v1/chat/completions", headers=preflight)
        assert answer.headers["access-control-allow-origin"] == "http://ui.example"


async def test_any_bearer_is_accepted_without_keys(gateway: Gateway) -> None:
    for headers in ({}, {"Authorization": "Bearer sk-anything"}):
        assert (await gateway.client.get("/v1/models", headers=headers)).status_code == 200
