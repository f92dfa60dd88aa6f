"""`butterfly up` and the commands around it, as an operator meets them."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.cli.clients.control_plane import Coordinator
from shared.contracts.coordinator import NodeView
from shared.domain.session import NodeState
from tests.e2e.running import HOST, START_LIMIT_S, Cluster, butterfly, is_alive, until
from tests.fakes.free_ports import free_base_port

pytestmark = pytest.mark.timeout(500)

MakeCluster = Callable[[], Cluster]


def layer_ranges(cluster: Cluster) -> list[tuple[int, int]]:
    """Of all nodes, in order, each once."""
    nodes = cluster.status()["nodes"]
    return sorted({(stage["start"], stage["end"]) for node in nodes for stage in node["stages"]})


def test_status_as_json_names_every_process_and_node(cluster: Cluster) -> None:
    status = cluster.status()
    assert set(status) == {"processes", "nodes"}
    assert [process["name"] for process in status["processes"]] == [
        *("redis", "metrics", "partitioner", "coordinator", "scheduler"),
        *(f"worker-{index}" for index in range(4)),
        "api",
    ]
    for process in status["processes"]:
        assert set(process) == {"name", "pid", "port", "ready", "restarts"}
        assert process["ready"] is True
        assert is_alive(process["pid"])
    assert len(status["nodes"]) == 4
    assert {"node_id", "state", "address", "capability", "stages"} <= set(status["nodes"][0])


def test_status_of_a_gateway_knows_no_processes(cluster: Cluster) -> None:
    done = butterfly("status", "--json", "--api", cluster.api_url)
    assert json.loads(done.stdout)["processes"] == []
    assert len(json.loads(done.stdout)["nodes"]) == 4


def test_the_layers_are_cut_over_three_workers(cluster: Cluster) -> None:
    ranges = layer_ranges(cluster)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 30
    assert len(ranges) >= 3


def test_the_printed_curl_names_the_model_and_the_address(cluster: Cluster) -> None:
    printed = cluster.output.read_text()
    assert f"curl -N {cluster.api_url}/v1/chat/completions" in printed
    assert f'"model": "{cluster.model}"' in printed


def test_chat_streams_an_answer_to_the_terminal(cluster: Cluster) -> None:
    done = cluster.butterfly("chat", "Hello", "--temperature", "0", "--max-tokens", "16")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Hello! How can I assist you today?\n"


def test_a_task_can_be_submitted_and_seen(cluster: Cluster) -> None:
    task_id = cluster.butterfly("tasks", "submit", "Say hello.", "--max-tokens", "4").stdout.strip()
    until(lambda: json.loads(cluster.butterfly("tasks", "show", task_id).stdout)["status"] == "completed")
    assert task_id in cluster.butterfly("tasks").stdout


def test_a_plan_is_previewed_and_measured(cluster: Cluster) -> None:
    done = cluster.butterfly("plan", "--run", "--json", "--sequences", "2", "--prompt-tokens", "32")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {(seat["start"], seat["end"]) for seat in told["seats"]} <= set(layer_ranges(cluster))
    assert told["predicted"]["verified_tokens_per_s"] > 0
    assert told["measured"]["tokens_per_s"] > 0
    assert told["measured"]["first_token_ms"] > 0


def test_a_killed_worker_is_started_again_and_seen_again(cluster: Cluster) -> None:
    killed = cluster.pids()["worker-3"]
    os.kill(killed, signal.SIGKILL)

    def is_back() -> bool:
        worker = next(process for process in cluster.status()["processes"] if process["name"] == "worker-3")
        return bool(worker["ready"] and worker["restarts"] == 1 and worker["pid"] != killed)

    until(is_back)
    until(lambda: [node["state"] for node in cluster.status()["nodes"]].count("ready") == 4)


def test_a_worker_with_the_join_token_joins_is_drained_survives_its_engine_and_leaves(
    cluster: Cluster, tmp_path: Path
) -> None:
    coordinator = f"http://{HOST}:{int(cluster.api_url.rpartition(':')[2]) + 3}"
    secrets = json.loads((cluster.data_dir / "secrets.json").read_text())
    listen = f"{HOST}:{free_base_port(0)}"
    command = [sys.executable, "-m", "services.cli", "worker", "--join", coordinator]
    command += ["--token", secrets["join_token"]]
    command += ["--listen", listen, "--data-dir", str(tmp_path), "--memory-mb", "600"]
    joined = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # what it prints is shown where this fails

    async def nodes() -> tuple[NodeView, ...]:
        client = Coordinator(coordinator, service_token=secrets["service_token"], now=time.monotonic)
        try:
            return await client.nodes()
        finally:
            await client.aclose()

    def seen() -> NodeView | None:
        return next((node for node in asyncio.run(nodes()) if node.address == f"http://{listen}"), None)

    def is_seen(state: NodeState) -> bool:
        assert joined.poll() is None, "the worker has ended"
        node = seen()
        return node is not None and node.state is state

    try:
        until(lambda: is_seen(NodeState.READY), limit_s=START_LIMIT_S)
        first = seen()
        assert first is not None

        assert cluster.butterfly("nodes", "drain", first.node_id).returncode == 0
        assert is_seen(NodeState.DRAINING)
        assert cluster.butterfly("nodes", "resume", first.node_id).returncode == 0
        until(lambda: is_seen(NodeState.READY))

        children = Path(f"/proc/{joined.pid}/task/{joined.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGABRT)  # as the engine's library does
        until(lambda: first.boot_id not in {node.boot_id for node in asyncio.run(nodes())}, limit_s=3)  # no ghost
        until(lambda: is_seen(NodeState.READY), limit_s=START_LIMIT_S)
        again = seen()
        assert again is not None
        assert again.node_id == first.node_id
    finally:
        joined.terminate()
        joined.wait(60)
    until(lambda: seen() is None, limit_s=3)


def test_the_secrets_are_readable_to_their_owner_only(cluster: Cluster) -> None:
    assert (cluster.data_dir / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_workers_are_not_told_the_service_token(cluster: Cluster) -> None:
    token = json.loads((cluster.data_dir / "secrets.json").read_text())["service_token"]
    environ = Path(f"/proc/{cluster.pids()['worker-0']}/environ").read_text()
    assert token not in environ
    assert "REDIS_URL" not in environ


def test_a_second_cluster_in_the_same_folder_is_refused(cluster: Cluster) -> None:
    refused = cluster.butterfly("up")
    assert refused.returncode == 1
    assert "another `butterfly up` runs in" in refused.stderr


def test_a_taken_port_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    base_port = free_base_port(1)
    with socket.create_server((HOST, base_port + 2)):
        refused = butterfly("up", "--workers", "1", "--base-port", str(base_port), "--data-dir", str(tmp_path))
    assert refused.returncode == 1
    assert f"port {base_port + 2} of {HOST} is taken" in refused.stderr
    assert "partition.bind_address" in refused.stderr
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_service_that_refuses_its_settings_stops_the_start(tmp_path: Path) -> None:
    base_port = free_base_port(0)
    refused = butterfly(
        *("up", "--workers", "0", "--base-port", str(base_port), "--data-dir", str(tmp_path), "--host", "0.0.0.0"),
    )
    assert refused.returncode == 1
    assert "api.allow_anonymous" in refused.stderr


def test_ctrl_c_stops_everything_and_the_exit_code_is_zero(own_cluster: MakeCluster) -> None:
    running = own_cluster()
    pids = running.pids()
    running.interrupt()
    assert running.wait() == 0
    assert [name for name, pid in pids.items() if is_alive(pid)] == []
    assert running.butterfly("status").returncode == 1


def test_a_second_ctrl_c_does_not_wait(own_cluster: MakeCluster) -> None:
    running = own_cluster()
    pids = running.pids()
    os.kill(pids["api"], signal.SIGSTOP)  # it would use all of its grace
    running.interrupt()
    until(lambda: "once more to stop at once" in running.output.read_text())
    began_s = time.monotonic()
    running.interrupt()
    assert running.wait() == 0
    assert time.monotonic() - began_s < 20
    assert [name for name, pid in pids.items() if is_alive(pid)] == []


def test_a_killed_up_leaves_no_orphan_and_can_be_started_again(own_cluster: MakeCluster) -> None:
    running = own_cluster()
    pids = running.pids()
    running.process.kill()
    running.process.wait()
    until(lambda: not any(is_alive(pid) for pid in pids.values()))
    assert "no cluster runs in" in running.butterfly("status").stderr
