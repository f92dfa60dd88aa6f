"""One engine, one build and one cluster for all container tests; skipped, with the reason, where there can be none."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.containers.compose import ComposeCluster, Engine
from tests.containers.engine import NoEngine, docker_engine, tell
from tests.fakes.free_ports import free_base_port


@pytest.fixture(scope="session")
def empty_engine() -> Iterator[Engine]:
    with ExitStack() as stack:
        try:
            environ = stack.enter_context(docker_engine())
        except NoEngine as error:
            pytest.skip(str(error))
        yield Engine(environ)


@pytest.fixture(scope="session")
def built(empty_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> ComposeCluster:
    """The cluster with its images built, not started."""
    liar_data = tmp_path_factory.mktemp("containers") / "liar"
    cluster = ComposeCluster(empty_engine, port=free_base_port(0), liar_data=liar_data)
    began_s = time.monotonic()
    with ThreadPoolExecutor() as pool:  # two that share no layer
        redis = pool.submit(cluster.compose, "build", "--quiet", "redis")
        cluster.compose("build", "--quiet", "setup", "partitioner", "worker")
        cluster.compose("build", "--quiet", "liar")
        redis.result()
    tell(f"images built in {time.monotonic() - began_s:.0f} s")
    return cluster


@pytest.fixture(scope="session")
def engine(built: ComposeCluster) -> Engine:
    """Has the images."""
    return built.engine


@pytest.fixture(scope="session")
def cluster(built: ComposeCluster) -> Iterator[ComposeCluster]:
    began_s = time.monotonic()
    try:
        built.up()
        tell(f"up and healthy in {time.monotonic() - began_s:.0f} s")
        yield built
    finally:
        volumes, began_s = built.volumes(), time.monotonic()
        built.compose("down", "--volumes", "--remove-orphans")
        tell(f"down in {time.monotonic() - began_s:.0f} s")
    assert volumes & set(built.engine.docker("volume", "ls", "--quiet").split()) == set()
    assert built.leftovers() == {"containers": [], "volumes": [], "networks": []}
