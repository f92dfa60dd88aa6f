"""Workers are tried by a real cluster, and plans follow what they are found to do. Not how fast: that they differ."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.cpu_shares import NoControlGroups, limited
from tests.e2e.running import Cluster, end_cluster, start_cluster, until
from tests.fakes.free_ports import free_base_port

MEASURED_LIMIT_S = 180.0
SHARE = 0.2
"""Cores of the slow worker: far below what noise explains."""


@pytest.fixture
def cluster(demo_model: Path, tmp_path: Path) -> Iterator[Cluster]:
    started = start_cluster(
        demo_model,
        tmp_path / "data",
        base_port=free_base_port(3),
        workers=3,
        stages=3,
        environ={"BUTTERFLY_COORDINATION__SPEEDS": "measured"},
    )
    yield started
    end_cluster(started)


def nodes_of(cluster: Cluster) -> dict[str, Any]:  # JSON as clients get it
    """By port."""
    listed = httpx.get(f"{cluster.api_url}/v1/nodes", trust_env=False).json()["data"]
    return {node["address"].rpartition(":")[2]: node for node in listed}


def layers_of(cluster: Cluster) -> dict[str, int]:
    """By node, in lane 0 of the plan for new sessions."""
    wish = {"model": cluster.model, "verification": "none"}
    told = httpx.post(f"{cluster.api_url}/v1/plans/preview", json=wish, trust_env=False).json()
    return {seat["node_id"]: seat["end"] - seat["start"] for seat in told["pipelines"][0]["lanes"][0]}


@pytest.mark.timeout(300)
def test_a_worker_with_a_part_of_a_core_gets_fewer_layers(cluster: Cluster) -> None:
    pids = cluster.pids()
    ports = sorted(nodes_of(cluster))
    try:
        with limited([(pids["worker-2"], SHARE)]):
            until(lambda: _all_measured(cluster), limit_s=MEASURED_LIMIT_S)
            slow, *others = (nodes_of(cluster)[port] for port in reversed(ports))
            speeds = {node["node_id"]: node["capability"]["speed"] for node in (slow, *others)}
            assert speeds[slow["node_id"]] < min(speeds[node["node_id"]] for node in others) / 2, speeds
            layers = layers_of(cluster)
            assert layers[slow["node_id"]] < min(layers[node["node_id"]] for node in others), layers
    except NoControlGroups as error:
        pytest.skip(str(error))


@pytest.mark.timeout(300)
def test_an_operator_has_a_worker_measured_anew(cluster: Cluster) -> None:
    until(lambda: _all_measured(cluster), limit_s=MEASURED_LIMIT_S)
    node = next(iter(nodes_of(cluster).values()))["node_id"]
    done = cluster.butterfly("nodes", "measure", node)
    assert done.returncode == 0, done.stderr
    assert _all_measured(cluster)  # by what was found before, as long as there is nothing newer
    assert cluster.butterfly("nodes", "measure", "nobody").returncode == 1


def _all_measured(cluster: Cluster) -> bool:
    nodes = nodes_of(cluster).values()
    return len(nodes) == 3 and all(node["capability"]["is_measured"] for node in nodes)
