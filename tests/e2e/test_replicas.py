"""Several replicas of every service: whichever dies, a running verified answer goes on with the same tokens."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import httpx
import pytest
from redis import Redis

from services.cli.domain.cluster import Kind, port_of
from shared.domain.task import SamplerParams
from shared.registry.keys import PREFIXES, SINGLES
from tests.e2e.running import HOST, Cluster, end_cluster, start_cluster, until
from tests.e2e.tokens import expected_tokens
from tests.fakes.free_ports import free_base_port
from tests.integration.engine.stages import Chain

REPLICAS = {Kind.API: 2, Kind.SCHEDULER: 2, Kind.PARTITIONER: 2, Kind.COORDINATOR: 2}
PROMPT = [504, 3575, 282, 4649, 314]
NUM_TOKENS = 240
ENOUGH = 30
"""Committed tokens before something dies."""
TRIES = 5
NEXT_COMMIT_S = 30.0
"""The lease is 3 s; the rest is for loading, replaying and a busy machine."""


@dataclass
class Replicated:
    cluster: Cluster
    base_port: int

    @property
    def redis(self) -> "Redis":
        return Redis(port=port_of(self.base_port, Kind.REDIS))

    def api(self, index: int = 0) -> str:
        return f"http://{HOST}:{port_of(self.base_port, Kind.API, index)}"

    def coordinator_of(self, task_id: str) -> str:
        """Name of the process that holds the session now."""
        with self.redis as redis:
            boot_id = redis.hget(PREFIXES["task"] + task_id, "coordinator").decode()
            here = [json.loads(replica) for replica in redis.zrange(SINGLES["coordinators"], 0, -1)]
        port = next(int(each["address"].rpartition(":")[2]) for each in here if each["boot_id"] == boot_id)
        return "coordinator" if port == port_of(self.base_port, Kind.COORDINATOR) else "coordinator-1"

    def field_of(self, task_id: str, name: str) -> str:
        """Of its record in the registry; empty while there is none."""
        with self.redis as redis:
            return (redis.hget(PREFIXES["task"] + task_id, name) or b"").decode()

    def epoch_of(self, task_id: str) -> int:
        with self.redis as redis:
            return int(redis.hget(PREFIXES["task"] + task_id, "epoch"))


@dataclass
class Following:
    """A client of one gateway that reads a task's events, and those of another from where the first one ended."""

    replicated: Replicated
    task_id: str
    ids: list[int] = field(default_factory=list)
    last_id: str = ""
    committed_at_s: float = 0.0
    status: str = ""

    def follow(self, api: str) -> None:
        """Until the task ends or the gateway does."""
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        try:
            with (
                httpx.Client(base_url=api, trust_env=False, timeout=120.0) as client,
                client.stream("GET", f"/v1/tasks/{self.task_id}/events", headers=headers) as events,
            ):
                name = ""
                for line in events.iter_lines():
                    what, _, value = line.partition(": ")
                    if what == "event":
                        name = value
                    elif what == "id":
                        self.last_id = value
                    elif what == "data":
                        self._take(name, json.loads(value))
        except httpx.TransportError:
            return

    def _take(self, name: str, data: dict[str, object]) -> None:
        if name == "commit":
            self.ids += data["token_ids"]  # type: ignore[arg-type]  # as the gateway documents it
            self.committed_at_s = time.monotonic()
        elif name == "end":
            self.status = str(data["status"])


@pytest.fixture(scope="module")
def replicated(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    base_port = free_base_port(4, REPLICAS)
    running = start_cluster(
        demo_model,
        tmp_path_factory.mktemp("replicas") / "cluster",
        base_port=base_port,
        workers=4,
        stages=3,
        replicas=",".join(f"{kind}={count}" for kind, count in REPLICAS.items()),
    )
    try:
        yield Replicated(running, base_port)
    finally:
        end_cluster(running)


@pytest.fixture(scope="module")
def right(demo_model: Path) -> list[int]:
    """The answer, by the whole model in one process."""
    whole = Chain.open([demo_model])
    try:
        return expected_tokens(whole, PROMPT, SamplerParams(temperature=0), num_tokens=NUM_TOKENS)
    finally:
        whole.close()


def submit(api: str, *, hold: bool = False, key: str = "") -> str:
    body = {
        "kind": "completion",
        "model": "smollm2-135m",
        "verification": {"mode": "audit", "hold": hold},
        "input": {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0},
    }
    headers = {"Idempotency-Key": key} if key else {}
    accepted = httpx.post(f"{api}/v1/tasks", json=body, headers=headers, trust_env=False, timeout=30.0)
    assert accepted.status_code == 202, accepted.text
    return str(accepted.json()["task_id"])


def wait_ready(replicated: Replicated) -> None:
    """After a kill: everybody is back."""
    until(lambda: all(process["ready"] for process in replicated.cluster.status()["processes"]))


def play(replicated: Replicated, disturb: Callable[[str], Callable[[], None] | None]) -> tuple[Following, float]:
    """A verified answer during which something happens; what the client saw, and how long until the next commit."""
    wait_ready(replicated)
    task_id = submit(replicated.api())
    following = Following(replicated, task_id)
    reader = Thread(target=following.follow, args=[replicated.api()])
    reader.start()
    until(lambda: len(following.ids) >= ENOUGH)
    undo = disturb(task_id)
    began_s, seen = time.monotonic(), len(following.ids)
    until(lambda: len(following.ids) > seen, limit_s=NEXT_COMMIT_S)
    waited_s = following.committed_at_s - began_s
    if undo is not None:
        undo()
    reader.join(120.0)
    return following, waited_s


def kill(replicated: Replicated, name: str) -> None:
    os.kill(replicated.cluster.pids()[name], signal.SIGKILL)


def test_the_coordinator_of_a_running_answer_may_be_killed(replicated: Replicated, right: list[int]) -> None:
    epochs: list[int] = []

    def disturb(task_id: str) -> None:
        epochs.append(replicated.epoch_of(task_id))
        kill(replicated, replicated.coordinator_of(task_id))

    following, waited_s = play(replicated, disturb)
    print(f"\nkilled coordinator: {waited_s:.2f} s to the next committed token")
    assert (following.status, following.ids) == ("completed", right)
    assert replicated.epoch_of(following.task_id) > epochs[0]


def test_a_coordinator_that_slept_and_wakes_up_commits_nothing_more(replicated: Replicated, right: list[int]) -> None:
    def disturb(task_id: str) -> Callable[[], None]:
        pid = replicated.cluster.pids()[replicated.coordinator_of(task_id)]
        os.kill(pid, signal.SIGSTOP)
        return lambda: os.kill(pid, signal.SIGCONT)

    following, waited_s = play(replicated, disturb)
    print(f"\nstopped coordinator: {waited_s:.2f} s to the next committed token")
    assert (following.status, following.ids) == ("completed", right)


@pytest.mark.parametrize("name", ["scheduler", "scheduler-1", "partitioner", "partitioner-1"])
def test_a_service_beside_a_running_answer_may_be_killed(name: str, replicated: Replicated, right: list[int]) -> None:
    following, waited_s = play(replicated, lambda _: kill(replicated, name))
    print(f"\nkilled {name}: {waited_s:.2f} s to the next committed token")
    assert (following.status, following.ids) == ("completed", right)
    again = submit(replicated.api(1))  # whoever is left takes the next one
    followed = Following(replicated, again)
    followed.follow(replicated.api(1))
    assert (followed.status, followed.ids) == ("completed", right)


def test_a_client_goes_on_at_another_gateway_by_the_task_id(replicated: Replicated, right: list[int]) -> None:
    wait_ready(replicated)
    task_id = submit(replicated.api(0), key="once")
    assert submit(replicated.api(1), key="once") == task_id
    following = Following(replicated, task_id)
    reader = Thread(target=following.follow, args=[replicated.api(0)])
    reader.start()
    until(lambda: len(following.ids) >= ENOUGH)
    kill(replicated, "api")
    reader.join(10.0)
    assert following.status == ""
    following.follow(replicated.api(1))
    assert (following.status, following.ids) == ("completed", right)


def test_whom_an_operator_drains_gets_no_work_from_any_coordinator_nor_from_one_that_was_started_anew(
    replicated: Replicated,
) -> None:
    wait_ready(replicated)
    coordinators = [port_of(replicated.base_port, Kind.COORDINATOR, index) for index in range(2)]
    token = json.loads((replicated.cluster.data_dir / "secrets.json").read_text())["service_token"]

    def states(node_id: str) -> list[str]:
        found = []
        for port in coordinators:
            url = f"http://{HOST}:{port}/nodes"
            try:
                answer = httpx.get(url, headers={"X-Butterfly-Service-Token": token}, trust_env=False)
            except httpx.TransportError:
                return []
            found += [node["state"] for node in answer.json().get("nodes", ()) if node["node_id"] == node_id]
        return found

    node_id = replicated.cluster.status()["nodes"][0]["node_id"]
    until(lambda: states(node_id) == ["ready"] * 2)
    assert replicated.cluster.butterfly("nodes", "drain", node_id).returncode == 0
    until(lambda: states(node_id) == ["draining"] * 2, limit_s=3.0)
    pid = replicated.cluster.pids()["coordinator"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: replicated.cluster.pids()["coordinator"] not in (pid, None))
    wait_ready(replicated)
    until(lambda: len(states(node_id)) == 2)
    assert states(node_id) == ["draining"] * 2
    assert replicated.cluster.butterfly("nodes", "resume", node_id).returncode == 0
    until(lambda: states(node_id) == ["ready"] * 2, limit_s=3.0)


def waits_for_its_audit(replicated: Replicated, number: signal.Signals) -> tuple[Following, Thread, int]:
    """A held answer whose coordinator got this signal while it audited; its reader, and the coordinator's pid."""
    for _ in range(TRIES):
        wait_ready(replicated)
        pids, following = replicated.cluster.pids(), Following(replicated, submit(replicated.api(), hold=True))
        reader = Thread(target=following.follow, args=[replicated.api()])
        reader.start()
        task_id = following.task_id
        until(lambda task_id=task_id: bool(replicated.field_of(task_id, "tail_audit")), every_s=0.005)  # type: ignore[misc]
        pid = pids[replicated.coordinator_of(task_id)]
        os.kill(pid, number)
        if replicated.field_of(task_id, "state") == "aggregating":
            return following, reader, pid
        if number is signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        reader.join(NEXT_COMMIT_S)
    raise AssertionError("its audit was over each time before the signal came")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_held_answer_whose_auditing_coordinator_is_lost_is_audited_anew_and_given(
    number: signal.Signals, replicated: Replicated, right: list[int]
) -> None:
    following, reader, pid = waits_for_its_audit(replicated, number)
    began_s, epoch = time.monotonic(), replicated.epoch_of(following.task_id)
    assert following.ids == []
    reader.join(NEXT_COMMIT_S)
    print(f"\n{number.name} while the answer was audited: given {time.monotonic() - began_s:.2f} s later")
    if number is signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
    assert (following.status, following.ids) == ("completed", right)
    assert replicated.field_of(following.task_id, "tail_audit") == "passed"
    assert replicated.epoch_of(following.task_id) > epoch
