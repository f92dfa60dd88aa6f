"""More than f colluders, in a real cluster: two of three nodes sit in both lanes of a stage and lie alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from shared.contracts.receipts import BundleBody
from shared.domain.bundle import Bundle, check_bundle
from shared.domain.errors import VerificationUnavailable
from shared.domain.receipt import kept_receipt
from shared.domain.signing import SigningKey
from shared.domain.tail_state import TailState
from tests.byzantine.clusters import NUM_TOKENS, honest_cluster, joined_worker, nodes, put_key, wait_ready
from tests.e2e.running import Cluster, until

ENDED = {"passed", "failed", "skipped"}


@contextmanager
def colluder(cluster: Cluster, agreement: Path, *, number: int) -> Iterator[str]:
    """Joins the cluster; gives the node's id."""
    key = SigningKey.generate()
    data_dir = cluster.data_dir / f"colluder-{number}"
    put_key(key, data_dir)
    command = ["tests.byzantine.colluding_worker", str(agreement)]
    with joined_worker(cluster, command, data_dir, number=number) as process:
        wait_ready(cluster, key.node_id, process, data_dir)
        yield key.node_id


def get(cluster: Cluster, path: str) -> dict[str, Any]:
    reply = httpx.get(f"{cluster.api_url}{path}", timeout=30.0, trust_env=False)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def submit(cluster: Cluster, prompt: str, **wish: object) -> httpx.Response:
    body = {
        "kind": "completion",
        "model": cluster.model,
        "input": {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0},
        "verification": {"mode": "audit", **wish},
    }
    return httpx.post(f"{cluster.api_url}/v1/tasks", json=body, timeout=30.0, trust_env=False)


def audited_answer(cluster: Cluster, prompt: str, *, hold: bool = False) -> dict[str, Any]:
    """The task of a verified answer, once its tail audit has come to its end."""
    reply = submit(cluster, prompt, hold=hold)
    assert reply.is_success, reply.text
    path = f"/v1/tasks/{reply.json()['task_id']}"
    until(lambda: get(cluster, path)["verification"]["tail_audit"] in ENDED, limit_s=120.0)
    return get(cluster, path)


def bundle_of(cluster: Cluster, task: dict[str, Any]) -> Bundle:
    return BundleBody.model_validate(get(cluster, f"{task['links']['receipt']}")).bundle()


def stage_of_both(bundle: Bundle, liars: set[str]) -> int:
    """First layer of the stage that the two hold in both lanes: with three nodes in rotation there is one."""
    signed = [kept_receipt(each).receipt for entry in bundle.entries for each in entry.receipts]
    (start,) = {
        one.layer_start
        for one in signed
        if {each.node_id for each in signed if each.layer_start == one.layer_start} == liars
    }
    return start


def told(cluster: Cluster, task: dict[str, Any]) -> str:
    """All that the stream of an ended task tells."""
    return httpx.get(f"{cluster.api_url}{task['links']['events']}", timeout=30.0, trust_env=False).text


def test_of_an_answer_that_is_held_back_colluders_get_nothing_shown(demo_model: Path, tmp_path: Path) -> None:
    agreement = tmp_path / "agreement"
    with (
        honest_cluster(demo_model, tmp_path / "cluster", tail_audit_fraction=1.0) as cluster,
        colluder(cluster, agreement, number=0) as one,
        colluder(cluster, agreement, number=1) as other,
    ):
        honest = sorted(set(nodes(cluster)) - {one, other})
        for node_id in honest[1:]:  # three nodes are left
            assert cluster.butterfly("nodes", "quarantine", node_id).returncode == 0

        task = audited_answer(cluster, "The capital of France is", hold=True)
        assert (task["status"], task["verification"]["tail_audit"]) == ("completed", "passed")
        assert task["result"]["choices"][0]["text"]
        assert "token_ids" in told(cluster, task)
        bundle = bundle_of(cluster, task)
        assert set(check_bundle(bundle).tail_nodes) == {one, other, honest[0]}

        agreement.write_text(str(stage_of_both(bundle, {one, other})))
        task = audited_answer(cluster, "Water boils at", hold=True)
        assert (task["status"], task["error"]["code"]) == ("failed", "dispute_unresolved")
        assert "another result" in task["error"]["message"]
        assert not task["result"]["choices"][0]["text"]
        assert "token_ids" not in told(cluster, task)
        refused = httpx.get(f"{cluster.api_url}{task['links']['receipt']}", trust_env=False)
        assert refused.status_code == 404

        code = VerificationUnavailable.code  # nodes may be coming back: until then it is another one
        until(lambda: submit(cluster, "Now nobody is left", hold=True).json().get("code") == code)
        refused = submit(cluster, "Now nobody is left", hold=True)
        assert (refused.status_code, refused.json()["code"]) == (503, code)
        assert "needs 3 nodes" in refused.json()["detail"]


def test_colluders_in_both_lanes_are_found_by_the_tail_audit_and_their_answer_is_revoked(
    demo_model: Path, tmp_path: Path
) -> None:
    agreement = tmp_path / "agreement"
    with (
        honest_cluster(demo_model, tmp_path / "cluster", tail_audit_fraction=1.0) as cluster,
        colluder(cluster, agreement, number=0) as one,
        colluder(cluster, agreement, number=1) as other,
    ):
        honest = sorted(set(nodes(cluster)) - {one, other})
        for node_id in honest[1:]:  # three nodes are left
            assert cluster.butterfly("nodes", "quarantine", node_id).returncode == 0

        task = audited_answer(cluster, "The capital of France is")
        assert task["verification"]["tail_audit"] == "passed"
        assert task["verification"]["verified"]
        bundle = bundle_of(cluster, task)
        guarantee = check_bundle(bundle)
        assert guarantee.tail_state is TailState.PASSED
        assert set(guarantee.tail_nodes) == {one, other, honest[0]}

        agreement.write_text(str(stage_of_both(bundle, {one, other})))
        task = audited_answer(cluster, "Water boils at")
        assert task["status"] == "completed"
        assert task["verification"]["tail_audit"] == "failed"
        assert task["verification"]["revoked"]
        assert not task["verification"]["verified"]
        assert check_bundle(bundle_of(cluster, task)).sentence.startswith("revoked: ")
        verified = cluster.butterfly("receipts", "verify", task["task_id"])
        assert verified.stdout.startswith("revoked: ")
        states = {node_id: node["state"] for node_id, node in nodes(cluster).items()}
        assert {states[node_id] for node_id in (one, other, honest[0])} == {"quarantined"}
        assert "evicted" not in states.values()
