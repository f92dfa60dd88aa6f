"""Real processes that are told to stop, or lose their registry, while they work."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
import pytest

from services.cli.domain.cluster import Kind, port_of
from services.cli.stores.data_dir import DataDir
from shared.resilience.context import SERVICE_TOKEN_HEADER
from tests.e2e.running import HOST, is_alive, until
from tests.synthetic.cluster import MODEL_ID, SyntheticCluster, synthetic_cluster

GRACE_S = 35.0
"""What the supervisor gives a process before it kills it."""
NUM_TOKENS = 120
MAX_LOOKS = 2_000
STREAMS = 3
CONTROL = (Kind.METRICS, Kind.PARTITIONER, Kind.SCHEDULER, Kind.COORDINATOR, Kind.API)


@dataclass
class Answers:
    """How the streams of the clients ended."""

    whole: int = 0
    told: list[str] = field(default_factory=list)
    """Ended by an error event, or refused by a status: clients know what became of them."""
    silent: list[str] = field(default_factory=list)
    """Cut without a last word."""


class Clients:
    """Ask for one streamed answer after the other, until `stop`."""

    def __init__(self, cluster: SyntheticCluster) -> None:
        self.answers = Answers()
        self._url = cluster.url(Kind.API)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(STREAMS)]

    @contextmanager
    def asking(self) -> Iterator[Answers]:
        for thread in self._threads:
            thread.start()
        try:
            yield self.answers
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()

    def _run(self, number: int) -> None:
        with httpx.Client(base_url=self._url, trust_env=False, timeout=60) as http:
            seed = number
            while not self._over.is_set():
                seed += STREAMS
                self._ask(http, seed)

    def _ask(self, http: httpx.Client, seed: int) -> None:
        body = {"model": MODEL_ID, "prompt": [5, 6, 7], "max_tokens": NUM_TOKENS, "seed": seed, "stream": True}
        try:
            with http.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code != 200:
                    answer.read()
                    self.answers.told.append(f"{answer.status_code} {answer.text}")
                    time.sleep(0.2)
                    return
                self._note(list(answer.iter_lines()))
        except httpx.ConnectError:
            time.sleep(0.2)  # the gateway is being started again: nothing was accepted
        except httpx.HTTPError as error:
            self.answers.silent.append(repr(error))

    def _note(self, lines: list[str]) -> None:
        if "data: [DONE]" in lines and not any('"error"' in line for line in lines):
            self.answers.whole += 1
        elif any('"error"' in line for line in lines):
            self.answers.told.append(next(line for line in lines if '"error"' in line))
        else:
            self.answers.silent.append(f"{len(lines)} lines without an end")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyntheticCluster]:
    with synthetic_cluster(tmp_path_factory.mktemp("stopping"), workers=4, stages=2) as cluster:
        clients = Clients(cluster)
        with clients.asking() as answers:
            until(lambda: answers.whole >= STREAMS, limit_s=120)
        yield cluster


def pid_of(cluster: SyntheticCluster, kind: Kind) -> int:
    status = DataDir(cluster.data_dir).running()
    assert status is not None
    return next(process.pid for process in status.processes if process.name == kind and process.pid is not None)


def is_ready(cluster: SyntheticCluster, kind: Kind) -> bool:
    try:
        return httpx.get(f"{cluster.url(kind)}/readyz", trust_env=False, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("kind", CONTROL)
def test_a_service_told_to_stop_under_load_ends_in_order_and_every_client_hears_of_it(
    cluster: SyntheticCluster, kind: Kind
) -> None:
    with Clients(cluster).asking() as answers:
        until(lambda: answers.whole >= 1)
        pid, began_s = pid_of(cluster, kind), time.monotonic()
        os.kill(pid, signal.SIGTERM)
        until(lambda: not is_alive(pid), limit_s=GRACE_S)
        took_s = time.monotonic() - began_s
        until(lambda: is_ready(cluster, kind), limit_s=60)
        before = answers.whole
        until(lambda: answers.whole > before, limit_s=60)
    told = (cluster.data_dir / "up.out").read_text()
    print(f"{kind}: {took_s:.1f} s; {answers.whole} whole; told {len(answers.told)}; silent {answers.silent}")
    assert f"{kind} ended with exit code 0" in told
    assert answers.silent == []


def test_a_worker_told_to_stop_under_load_ends_with_code_0_and_every_answer_goes_on(cluster: SyntheticCluster) -> None:
    first_port = port_of(cluster.base_port, Kind.WORKER)

    def has_seats(index: int) -> bool:
        with suppress(httpx.HTTPError):
            return bool(httpx.get(f"http://{HOST}:{first_port + index}/state", trust_env=False).json()["seats"])
        return False

    with Clients(cluster).asking() as answers:
        # In turn, until one is found with a seat: which workers have any is the plan's choice.
        turns = itertools.islice(itertools.cycle(range(cluster.num_workers)), MAX_LOOKS)
        worker, began_s = cluster.worker_processes[next(filter(has_seats, turns))], time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(GRACE_S) == 0
        took_s, before = time.monotonic() - began_s, answers.whole
        until(lambda: answers.whole >= before + STREAMS, limit_s=60)
    print(f"worker: {took_s:.1f} s; {answers.whole} whole; told {answers.told}; silent {answers.silent}")
    assert answers.silent == []
    assert answers.told == []


def test_while_the_registry_is_away_clients_hear_503_and_all_services_go_on_when_it_is_back(
    cluster: SyntheticCluster,
) -> None:
    before = {kind: pid_of(cluster, kind) for kind in CONTROL}
    redis, seen = pid_of(cluster, Kind.REDIS), []
    with Clients(cluster).asking() as answers:
        until(lambda: answers.whole >= 1)
        os.kill(redis, signal.SIGSTOP)  # away without a word: the worst way
        try:
            answer = httpx.get(f"{cluster.url(Kind.API)}/v1/tasks", trust_env=False, timeout=20)
            seen.append((answer.status_code, answer.json()))
        finally:
            os.kill(redis, signal.SIGKILL)
        until(lambda: all(is_ready(cluster, kind) for kind in CONTROL), limit_s=60)
        whole = answers.whole
        until(lambda: answers.whole >= whole + STREAMS, limit_s=60)
    ((status, body),) = seen
    assert status == 503
    assert "registry" in json.dumps(body)
    assert {kind: pid_of(cluster, kind) for kind in CONTROL} == before
    assert answers.silent == []


def test_breakers_of_every_control_service_are_shown_to_the_operator_alone(cluster: SyntheticCluster) -> None:
    secrets = {SERVICE_TOKEN_HEADER: cluster.secrets.service_token}
    for kind in (Kind.API, Kind.SCHEDULER, Kind.COORDINATOR, Kind.PARTITIONER):
        url = f"{cluster.url(kind)}/state/peers"
        assert httpx.get(url, trust_env=False).status_code == 401
        shown = httpx.get(url, trust_env=False, headers=secrets).json()
        assert shown["service"] == kind
    assert httpx.get(f"{cluster.url(Kind.API)}/v1/models", trust_env=False).status_code == 200
