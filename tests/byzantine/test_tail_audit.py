"""More than f colluders, in a real cluster: two of three nodes sit in both lanes of a stage and lie alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from shared.contracts.receipts import BundleBody
from shared.domain.bundle import Bundle, check_bundle
from shared.domain.receipt import kept_receipt
from shared.domain.signing import SigningKey
from shared.domain.tail_audit import TailState
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


def audited_answer(cluster: Cluster, prompt: str) -> dict[str, Any]:
    """The task of a verified answer, once its tail audit has come to its end."""
    body = {
        "kind": "completion",
        "model": cluster.model,
        "input": {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0},
        "verification": "audit",
    }
    reply = httpx.post(f"{cluster.api_url}/v1/tasks", json=body, timeout=30.0, trust_env=False)
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
