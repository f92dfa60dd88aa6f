"""A running cluster for the tests that need one."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e.running import Cluster, end_cluster, is_alive, start_cluster
from tests.fakes.free_ports import free_base_port

LAST_WORDS = 4_000  # characters of each log


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the processes of the shared cluster said is shown beside what failed."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if call.when == "call" and report.failed and isinstance(cluster, Cluster):
        for log in sorted((cluster.data_dir / "logs").glob("*.log")):
            report.sections.append((f"end of {log.name}", log.read_text(errors="replace")[-LAST_WORDS:]))
    return report


@pytest.fixture(scope="session")
def cluster(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four workers, three stages, the demo model; shared by all tests, so leave it as it was."""
    data_dir = tmp_path_factory.mktemp("cluster")
    running = start_cluster(demo_model, data_dir, base_port=free_base_port(4), workers=4, stages=3)
    try:
        yield running
        pids = running.pids()
    finally:
        end_cluster(running)
    assert running.process.returncode == 0
    assert [name for name, pid in pids.items() if is_alive(pid)] == []


@pytest.fixture
def own_cluster(demo_model: Path, tmp_path: Path) -> Iterator[Callable[[], Cluster]]:
    """Starts a small cluster for one test that ends it in its own way."""
    started: list[Cluster] = []

    def start() -> Cluster:
        base_port = free_base_port(1)
        started.append(start_cluster(demo_model, tmp_path / "own", base_port=base_port, workers=1, stages=1))
        return started[-1]

    yield start
    for running in started:
        end_cluster(running)
