"""A cluster of containers: the tests run in this order, on one cluster, each leaves it whole."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.byzantine.clusters import ask_all, key_for, nodes, oracle, states
from tests.byzantine.roles import LIES, Cell
from tests.containers.compose import CONTROL_SERVICES, PROJECT, ComposeCluster
from tests.containers.engine import tell
from tests.e2e.running import until

RECOVERY_LIMIT_S = 120.0
ANSWERS_AFTER_A_KILL = 3  # two may have been asked for before
MAX_TOKENS = 12
LIE_ROUNDS = 8


def make_client(cluster: ComposeCluster) -> openai.OpenAI:
    """Patient: a container that was killed is away for some seconds."""
    return openai.OpenAI(
        base_url=f"{cluster.api_url}/v1",
        api_key="none",
        timeout=120,
        max_retries=60,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def answer(client: openai.OpenAI, cluster: ComposeCluster) -> str:
    """A verified one."""
    answered = client.chat.completions.with_raw_response.create(
        model=cluster.model,
        messages=[{"role": "user", "content": "Why is the sky blue?"}],
        max_tokens=MAX_TOKENS,
        temperature=0,
    )
    assert answered.headers["x-butterfly-verified"] == "audit"
    text = answered.parse().choices[0].message.content
    assert text
    return text


class Load:
    """Answers that arrived while something was done to the cluster."""

    def __init__(self, cluster: ComposeCluster) -> None:
        self._cluster = cluster
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self.texts: list[str] = []
        self.errors: list[str] = []

    def run(self) -> None:
        with make_client(self._cluster) as client:
            while not self._ended.is_set():
                try:
                    text = answer(client, self._cluster)
                except (AssertionError, openai.OpenAIError) as error:
                    self.errors.append(repr(error))
                    self._ended.wait(1.0)
                else:
                    with self._lock:
                        self.texts.append(text)

    def end(self) -> None:
        self._ended.set()

    def goes_on(self) -> None:
        """Wait for some more answers."""
        wanted = len(self.texts) + ANSWERS_AFTER_A_KILL
        until(lambda: len(self.texts) >= wanted, limit_s=RECOVERY_LIMIT_S)

    def check(self) -> None:
        """Every question got the one right answer."""
        assert self.errors == []
        assert len(set(self.texts)) == 1


@pytest.fixture(scope="module")
def load(cluster: ComposeCluster) -> Iterator[Load]:
    """Begins with the first test that needs it."""
    load = Load(cluster)
    threads = [threading.Thread(target=load.run, name=f"load-{number}") for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        load.goes_on()
        yield load
    finally:
        load.end()
        for thread in threads:
            thread.join()


def ready_nodes(cluster: ComposeCluster) -> list[str]:
    return [node_id for node_id, state in states(cluster).items() if state == "ready"]


def is_ready(cluster: ComposeCluster) -> bool:
    try:
        return httpx.get(f"{cluster.api_url}/readyz", trust_env=False).is_success
    except httpx.TransportError:
        return False


def timed(what: str, act: Callable[[], None]) -> None:
    began_s = time.monotonic()
    act()
    tell(f"{what}: {time.monotonic() - began_s:.1f} s")


def test_the_official_client_gets_a_verified_answer(cluster: ComposeCluster) -> None:
    with make_client(cluster) as client:
        assert [model.id for model in client.models.list()] == [cluster.model]
        whole = answer(client, cluster)
        stream = client.chat.completions.create(
            model=cluster.model,
            messages=[{"role": "user", "content": "Why is the sky blue?"}],
            max_tokens=MAX_TOKENS,
            temperature=0,
            stream=True,
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == whole


def test_the_containers_commit_what_the_whole_model_gives_here(cluster: ComposeCluster, demo_model: Path) -> None:
    assert ask_all(cluster) == list(oracle(demo_model))


def test_every_container_is_hardened(cluster: ComposeCluster) -> None:
    for service in (*CONTROL_SERVICES, "redis", "worker"):
        for container in cluster.containers(service):
            found = cluster.engine.inspect(container)
            host = found["HostConfig"]
            assert host["ReadonlyRootfs"], service
            assert host["CapDrop"] == ["ALL"], service
            assert "no-new-privileges:true" in host["SecurityOpt"], service
            assert host["Memory"] > 0, service
            assert found["Config"]["User"] in {"10001:10001", "999:999"}, service
            published = [at["HostIp"] for ports in found["NetworkSettings"]["Ports"].values() for at in ports or []]
            assert set(published) <= {"127.0.0.1"}, service


def test_a_worker_knows_no_secret_of_the_control_services_and_reaches_no_redis(cluster: ComposeCluster) -> None:
    program = """
import concurrent.futures, json, pathlib, socket
def reaches(target):
    host, port = target
    try:
        socket.create_connection((host, port), timeout=2).close()  # an unknown name takes ten seconds
    except OSError:
        return False
    return True
told = pathlib.Path("/etc/butterfly/settings.toml").read_text()
ports = {"redis": 6379, "scheduler": 8081, "api": 8080, "coordinator": 8083}
with concurrent.futures.ThreadPoolExecutor() as pool:
    found = dict(zip(ports, pool.map(reaches, ports.items())))
print(json.dumps({"service_token": "service_token" in told, **found}))
"""
    found = json.loads(cluster.compose("exec", "-T", "worker", "python", "-c", program))
    assert found == {"service_token": False, "redis": False, "scheduler": False, "api": False, "coordinator": True}
    address = next(
        network["IPAddress"]
        for name, network in cluster.engine.inspect(cluster.containers("redis")[0])["NetworkSettings"][
            "Networks"
        ].items()
        if name.endswith("registry")
    )
    probe = f"import socket; socket.create_connection(({address!r}, 6379), timeout=2)"
    with pytest.raises(AssertionError, match=r"unreachable|timed out"):
        cluster.compose("exec", "-T", "worker", "python", "-c", probe)


def test_a_container_that_lies_is_evicted(cluster: ComposeCluster, demo_model: Path) -> None:
    until(lambda: len(ready_nodes(cluster)) == 4, limit_s=RECOVERY_LIMIT_S)
    honest, right = ready_nodes(cluster), list(oracle(demo_model))
    liar = key_for(Cell(1, "executor"), honest, cluster.liar_data)
    cluster.liar_data.chmod(0o777)  # the container's user is another
    (cluster.liar_data / "node_key").chmod(0o644)
    cluster.compose("up", "--detach", "--no-deps", "liar")
    until(lambda: states(cluster).get(liar) == "ready", limit_s=RECOVERY_LIMIT_S)
    for _ in range(LIE_ROUNDS):
        assert ask_all(cluster) == right
        if states(cluster).get(liar) == "evicted":
            break
    found = nodes(cluster)
    assert (cluster.liar_data / LIES).exists()
    assert found[liar]["state"] == "evicted"
    tell(f"the liar is evicted: {found[liar]['reason']}")
    assert [node_id for node_id in honest if found[node_id]["state"] == "evicted"] == []
    cluster.compose("rm", "--stop", "--force", "liar")
    assert ask_all(cluster) == right


def test_a_finished_task_is_there_again_after_redis_was_restored(cluster: ComposeCluster, tmp_path: Path) -> None:
    """As docs/operating.md says."""
    users = ("api", "scheduler", "coordinator", "redis")
    with make_client(cluster) as client:
        answered = client.chat.completions.with_raw_response.create(
            model=cluster.model, messages=[{"role": "user", "content": "Hello"}], max_tokens=4, temperature=0
        )
    task = f"{cluster.api_url}/v1/tasks/{answered.headers['x-butterfly-task-id']}"
    before = httpx.get(task, trust_env=False).json()
    assert before["status"] == "completed"

    def on_the_volume(command: str) -> None:
        mounts = ("--volume", f"{PROJECT}_redis:/data", "--volume", f"{tmp_path}:/backup")
        image = "butterfly-control:0.1.0"
        alone = ("run", "--rm", "--network", "none", "--user", "0:0", "--entrypoint", "sh")
        cluster.engine.docker(*alone, *mounts, image, "-c", command)

    cluster.compose("stop", *users)
    on_the_volume("tar -C /data -czf /backup/redis.tar.gz . && rm -rf /data/*")
    on_the_volume("tar -C /data -xzf /backup/redis.tar.gz")
    cluster.compose("start", *reversed(users))
    timed("ready after the restore", lambda: until(lambda: is_ready(cluster), limit_s=RECOVERY_LIMIT_S))
    with make_client(cluster) as client:
        answer(client, cluster)
    assert httpx.get(task, trust_env=False).json() == before


# From here on under a load of answers


@pytest.mark.parametrize("service", ["redis", *CONTROL_SERVICES, "worker"])
def test_answers_go_on_after_a_container_was_killed(cluster: ComposeCluster, load: Load, service: str) -> None:
    container = cluster.containers(service)[0]
    cluster.engine.docker("kill", container)
    cluster.engine.docker("start", container)
    timed(f"{service} killed and started, {ANSWERS_AFTER_A_KILL} more answers", load.goes_on)
    load.check()


def test_a_worker_cut_off_from_the_network_is_done_without_and_comes_back(cluster: ComposeCluster, load: Load) -> None:
    until(lambda: len(ready_nodes(cluster)) == 4, limit_s=RECOVERY_LIMIT_S)
    network, container = f"{PROJECT}_workers", cluster.containers("worker")[0]
    cluster.engine.docker("network", "disconnect", network, container)
    until(lambda: len(ready_nodes(cluster)) == 3, limit_s=RECOVERY_LIMIT_S)
    timed(f"a worker cut off, {ANSWERS_AFTER_A_KILL} more answers", load.goes_on)
    cluster.engine.docker("network", "connect", network, container)
    timed("the worker is back", lambda: until(lambda: len(ready_nodes(cluster)) == 4, limit_s=RECOVERY_LIMIT_S))
    load.goes_on()
    load.check()


def test_a_fifth_worker_joins_and_is_given_layers(cluster: ComposeCluster, load: Load) -> None:
    before = set(nodes(cluster))
    cluster.up("--scale", "worker=5", "--no-recreate")
    until(lambda: len(ready_nodes(cluster)) == 5, limit_s=RECOVERY_LIMIT_S)
    (fifth,) = set(nodes(cluster)) - before
    timed("the fifth worker holds layers", lambda: until(lambda: bool(nodes(cluster)[fifth]["stages"]), limit_s=60))
    held = cluster.volumes()
    cluster.up("--scale", "worker=4", "--no-recreate")
    load.goes_on()
    load.check()
    (of_the_fifth,) = held - cluster.volumes()
    cluster.engine.docker("volume", "rm", of_the_fifth)  # compose leaves it, as the README says
