from dataclasses import replace
from pathlib import Path

import pytest

from services.cli.domain.cluster import Kind, Seat, seats
from services.cli.domain.environment import Layout, environment_of, join_environment
from shared.runtime.config import Config, load_config

LAYOUT = Layout(
    host="127.0.0.1",
    reach_host="127.0.0.1",
    base_port=9000,
    data_dir="/data",
    redis_url="redis://127.0.0.1:9005/0",
    service_token="service-secret",
    join_token="join-secret",
    preload_models=("a-model",),
    verification="audit",
    num_stages=3,
    worker_memory_mb=512,
    parent_pid=77,
)


def seat(kind: Kind) -> Seat:
    return next(seat for seat in seats(LAYOUT.base_port, 2, with_redis=True) if seat.kind is kind)


def configured(kind: Kind, layout: Layout = LAYOUT, inherited: dict[str, str] | None = None) -> Config:
    """What the service itself reads from its environment: no key may be misspelt."""
    return load_config(None, environment_of(seat(kind), layout, inherited or {}))


@pytest.mark.parametrize(
    ("kind", "section"),
    [
        (Kind.API, "api"),
        (Kind.SCHEDULER, "scheduling"),
        (Kind.PARTITIONER, "partition"),
        (Kind.COORDINATOR, "coordination"),
        (Kind.METRICS, "metrics"),
    ],
)
def test_a_control_service_listens_at_its_seat_and_knows_the_others(kind: Kind, section: str) -> None:
    config = configured(kind)
    assert getattr(config, section).bind_address == f"127.0.0.1:{seat(kind).port}"
    assert config.services.scheduler_url == ("http://127.0.0.1:9001",)
    assert config.services.coordinator_url == ("http://127.0.0.1:9003",)
    assert config.redis.url is not None
    assert config.redis.url.get_secret_value() == LAYOUT.redis_url
    assert config.security.service_token.get_secret_value() == "service-secret"
    assert config.partition.models_dir == Path("/data/models")
    assert config.coordination.data_dir == Path("/data/coordinator")
    assert config.scheduling.preload_models == ("a-model",)
    assert config.partition.num_stages == 3


def test_a_worker_knows_its_coordinator_its_folder_and_its_share_of_memory() -> None:
    config = configured(Kind.WORKER)
    assert config.network.listen_address == "127.0.0.1:9010"
    assert config.network.advertise_address == "127.0.0.1:9010"
    assert config.network.peer_addresses == ("http://127.0.0.1:9003",)
    assert config.worker.data_dir == Path("/data/workers/0")
    assert config.worker.memory_mb == 512
    assert config.security.join_token.get_secret_value() == "join-secret"


def test_a_worker_sees_no_secret_of_the_control_plane() -> None:
    inherited = {
        "REDIS_URL": "redis://:pw@there",
        "BUTTERFLY_REDIS__URL": "redis://:pw@there",
        "BUTTERFLY_SECURITY__SERVICE_TOKEN": "service-secret",
        "PATH": "/bin",
    }
    environment = environment_of(seat(Kind.WORKER), LAYOUT, inherited)
    assert not any("service-secret" in value or "redis" in value for value in environment.values())
    assert environment["PATH"] == "/bin"


@pytest.mark.parametrize(
    ("theirs", "all_together"),
    [
        ({}, "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}, "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),
    ],
)
def test_a_worker_asks_for_huge_pages_unless_the_operator_decided(theirs: dict[str, str], all_together: str) -> None:
    assert environment_of(seat(Kind.WORKER), LAYOUT, theirs)["GLIBC_TUNABLES"] == all_together


def test_control_services_have_one_thread() -> None:
    assert environment_of(seat(Kind.API), LAYOUT, {})["OMP_NUM_THREADS"] == "1"


def test_every_process_dies_with_the_supervisor() -> None:
    for kind in set(Kind) - {Kind.REDIS}:  # the launcher sees to Redis
        assert environment_of(seat(kind), LAYOUT, {})["BUTTERFLY_PARENT_PID"] == "77"


def test_what_the_operator_set_reaches_the_services() -> None:
    assert (
        configured(Kind.SCHEDULER, inherited={"BUTTERFLY_SCHEDULING__MAX_QUEUE_SIZE": "7"}).scheduling.max_queue_size
        == 7
    )


def test_listening_everywhere_still_gives_addresses_that_can_be_called() -> None:
    open_layout = replace(LAYOUT, host="0.0.0.0", reach_host="192.168.1.9")
    config = configured(Kind.WORKER, open_layout)
    assert config.network.listen_address == "0.0.0.0:9010"
    assert config.network.advertise_address == "192.168.1.9:9010"
    assert config.services.coordinator_url == ("http://192.168.1.9:9003",)


def test_an_ipv6_host_stands_in_brackets() -> None:
    config = configured(Kind.API, replace(LAYOUT, host="::1", reach_host="::1"))
    assert config.api.bind_address == "[::1]:9000"
    assert config.services.metrics_url == "http://[::1]:9004"


def test_a_joining_worker_gets_nothing_but_what_it_was_told() -> None:
    variables = join_environment(
        coordinator_url="http://10.0.0.1:8083",
        join_token="t",
        listen="10.0.0.2:8090",
        advertise=None,
        data_dir="/w",
        memory_mb=None,
        inherited={},
    )
    config = load_config(None, variables)
    assert config.network.peer_addresses == ("http://10.0.0.1:8083",)
    assert config.worker.memory_mb is None
    assert config.network.advertise_address is None


def test_replicas_are_told_where_all_of_them_are_and_coordinators_where_each_is() -> None:
    layout = replace(LAYOUT, replicas={Kind.COORDINATOR: 2, Kind.SCHEDULER: 2})
    first, second = (
        load_config(None, environment_of(seat, layout, {}))
        for seat in seats(9000, 0, with_redis=False, replicas=layout.replicas)
        if seat.kind is Kind.COORDINATOR
    )
    urls = ("http://127.0.0.1:9003", "http://127.0.0.1:9103")
    assert first.services.coordinator_url == second.services.coordinator_url == urls
    assert (first.coordination.advertise_url, second.coordination.advertise_url) == urls
    assert first.services.scheduler_url == ("http://127.0.0.1:9001", "http://127.0.0.1:9101")
    assert second.coordination.bind_address == "127.0.0.1:9103"
