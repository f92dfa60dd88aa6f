import socket
from pathlib import Path

import pytest

from services.cli.domain.cluster import seats
from services.cli.local_cluster import Wishes, check_ports, plan_cluster
from services.cli.probe import answers_ready, outward_address, port_is_free
from services.cli.stores.data_dir import DataDir
from shared.domain.errors import InvalidInput
from shared.runtime.config import Config, ConfigError, load_config
from tests.fakes.free_ports import free_base_port


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    folder = DataDir(tmp_path)
    folder.prepare()
    return folder


def wishes(base_port: int, *, host: str = "127.0.0.1", num_workers: int = 2) -> Wishes:
    return Wishes(num_workers=num_workers, base_port=base_port, host=host, model="m", num_stages=None)


@pytest.mark.parametrize(
    ("offset", "setting"), [(0, "api.bind_address"), (5, "redis.url"), (11, "network.listen_address")]
)
def test_a_taken_port_is_named_with_its_setting(offset: int, setting: str) -> None:
    base_port = free_base_port(2)
    taken = socket.create_server(("127.0.0.1", base_port + offset))
    with taken, pytest.raises(InvalidInput, match=f"port {base_port + offset} .*{setting}"):
        check_ports(seats(base_port, 2, with_redis=True), "127.0.0.1")
    check_ports(seats(base_port, 2, with_redis=True), "127.0.0.1")


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    with pytest.raises(InvalidInput, match=r"cannot listen on 192\.0\.2\.1"):
        check_ports(seats(free_base_port(0), 0, with_redis=False), "192.0.2.1")


def test_ports_beyond_the_highest_are_refused(data: DataDir) -> None:
    with pytest.raises(InvalidInput, match="lower --base-port"):
        plan_cluster(wishes(65_530), Config(), data, parent_pid=1, environ={})


def test_listening_to_other_machines_without_keys_must_be_wanted(data: DataDir) -> None:
    with pytest.raises(ConfigError, match=r"api\.allow_anonymous"):
        plan_cluster(wishes(free_base_port(2), host="0.0.0.0"), Config(), data, parent_pid=1, environ={})


def test_what_the_configuration_says_is_used(data: DataDir) -> None:
    environ = {
        "BUTTERFLY_REDIS__URL": "redis://elsewhere:6379/0",
        "BUTTERFLY_SECURITY__SERVICE_TOKEN": "given",
        "BUTTERFLY_WORKER__MEMORY_MB": "123",
        "BUTTERFLY_SCHEDULING__PRELOAD_MODELS": "other",
        "BUTTERFLY_PARTITION__NUM_STAGES": "2",
    }
    cluster = plan_cluster(wishes(free_base_port(2)), load_config(None, environ), data, parent_pid=1, environ=environ)
    assert "redis" not in {spec.seat.name for spec in cluster.specs}
    assert cluster.layout.redis_url == "redis://elsewhere:6379/0"
    assert cluster.layout.service_token == "given"
    assert cluster.layout.worker_memory_mb == 123
    assert cluster.layout.preload_models == ("m", "other")
    assert cluster.layout.num_stages == 2


def test_a_redis_server_is_started_when_none_is_configured(data: DataDir) -> None:
    cluster = plan_cluster(wishes(free_base_port(1), num_workers=1), Config(), data, parent_pid=1, environ={})
    redis = next(spec for spec in cluster.specs if spec.seat.name == "redis")
    assert "--appendfsync" in redis.command
    assert cluster.layout.redis_url == f"redis://127.0.0.1:{redis.seat.port}/0"


async def test_a_port_nobody_listens_on_is_not_ready() -> None:
    base_port = free_base_port(0)
    assert port_is_free("127.0.0.1", base_port)
    assert not await answers_ready("127.0.0.1", base_port)


def test_the_address_that_faces_this_machine_is_loopback() -> None:
    assert outward_address("127.0.0.1") == "127.0.0.1"
    assert outward_address("no-such-host.invalid") == "127.0.0.1"
