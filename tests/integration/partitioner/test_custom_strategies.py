"""Strategies of other packages: found by their entry points, chosen by name, and never believed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.partitioner.app import create_app
from shared.contracts.partitioner import PlanResponse
from shared.runtime.config import Config, ConfigError, PartitionConfig
from tests.fakes.installed_package import install, write_package
from tests.integration.partitioner.conftest import nodes, partitioner, trusted

EXAMPLE = Path(__file__).parents[2] / "example_strategy"
GIVING = """
from services.partitioner.domain.strategies.base import Strategy
from shared.domain.plan import LayerRange, Partition

class Giving(Strategy):
    name = "giving"
    def seat(self, rooms, num_layers, num_stages, objective):
        return {seats}
"""


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, empty at first."""
    folder = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for module in ("brought", "fewest_nodes"):
        sys.modules.pop(module, None)


def bring(site: Path, folder: Path, code: str, points: dict[str, str] | None = None) -> None:
    """Install a package `brought` of this code."""
    install(write_package(folder / "package", code=code, points=points or {"giving": "brought:Giving"}), site)


def seat(stage: int, node: str, start: int, end: int) -> str:
    return f"Partition({stage}, {node!r}, LayerRange({start}, {end}))"


async def asked(control: httpx.AsyncClient, **body: object) -> httpx.Response:
    return await control.post("/plans", json={"model_id": "tiny", "nodes": nodes(3), **body})


async def test_the_example_is_chosen_by_its_name(site: Path, models_dir: Path) -> None:
    install(EXAMPLE, site)
    async with partitioner(models_dir) as client:
        answer = await asked(await trusted(client), strategy="fewest_nodes", num_stages=2)
    plan = PlanResponse.model_validate_json(answer.content).plan
    assert plan.strategy == "fewest_nodes"
    assert [str(seat.layers) for seat in plan.lanes[0].partitions] == ["0-5", "5-6"]


async def test_its_plans_have_lanes_and_are_kept_like_others(site: Path, models_dir: Path) -> None:
    install(EXAMPLE, site)
    seating = {"verification": "audit", "max_byzantine": 1}
    async with partitioner(models_dir) as client:
        control = await trusted(client)
        answers = [await asked(control, strategy="fewest_nodes", seating=seating) for _ in range(2)]
    assert [answer.json()["cached"] for answer in answers] == [False, True]
    assert len(answers[0].json()["plan"]["lanes"]) == 2


async def test_who_asks_for_another_one_is_told_that_it_is_there(site: Path, models_dir: Path) -> None:
    install(EXAMPLE, site)
    async with partitioner(models_dir) as client:
        answer = await asked(await trusted(client), strategy="magic")
    assert answer.status_code == 422
    assert "known are: fewest_nodes, load_balanced, topology_aware, uniform" in answer.json()["detail"]


def test_it_may_be_the_default(site: Path, tmp_path: Path) -> None:
    install(EXAMPLE, site)
    create_app(Config(partition=PartitionConfig(models_dir=tmp_path, default_strategy="fewest_nodes")))


@pytest.mark.parametrize(
    ("seats", "fault"),
    [
        (f"({seat(0, 'w0', 0, 2)}, {seat(1, 'w1', 3, 6)})", "a gap: stage 1 has layers 3-6"),
        (f"({seat(0, 'w0', 0, 4)}, {seat(1, 'w1', 3, 6)})", "an overlap: stage 1 has layers 3-6"),
        (f"({seat(0, 'w0', 0, 6)}, {seat(1, 'w1', 6, 6)})", "stage 1 has no layers"),
        (f"({seat(0, 'w0', 0, 2)}, {seat(1, 'w1', 2, 5)})", "its stages end at layer 5 of 6"),
        (f"({seat(0, 'w0', 0, 2)}, {seat(1, 'w1', 2, 9)})", "its stages end at layer 9 of 6"),
        (f"({seat(0, 'w0', 0, 2)}, {seat(1, 'stranger', 2, 6)})", "the node stranger of stage 1 is not among"),
        (f"({seat(0, 'w0', 0, 2)}, {seat(1, 'w0', 2, 6)})", "the node w0 has two stages"),
        (f"({seat(1, 'w0', 0, 2)}, {seat(0, 'w1', 2, 6)})", "stage 1 stands at place 0"),
        (f"({seat(0, 'w0', 0, 6)},)", "1 stages where 2 were wanted"),
        ("()", "0 stages where 2 were wanted"),
        ("'w0, w1'", "str is no sequence of Partition"),
        ("[('w0', 0, 6)]", "list is no sequence of Partition"),
        ("42", "int is no sequence of Partition"),
        ("1 / 0", "it raised ZeroDivisionError"),
    ],
)
async def test_what_breaks_the_contract_is_refused_and_not_kept(
    site: Path, models_dir: Path, seats: str, fault: str
) -> None:
    bring(site, models_dir, GIVING.format(seats=seats))
    async with partitioner(models_dir) as client:
        control = await trusted(client)
        for _ in range(2):
            answer = await asked(control, strategy="giving")
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_plan_input")
            assert f"the strategy 'giving' gave no plan: {fault}" in answer.json()["detail"]
        assert (await control.delete("/plans")).json() == {"dropped": 0}


async def test_a_node_is_not_given_more_than_it_can_hold(site: Path, models_dir: Path) -> None:
    bring(site, models_dir, GIVING.format(seats=f"({seat(0, 'w0', 0, 5)}, {seat(1, 'w1', 5, 6)})"))
    async with partitioner(models_dir) as client:
        answer = await asked(await trusted(client), strategy="giving", nodes=nodes(2, memory_bytes=1_000_000))
    assert answer.status_code == 422
    assert "layers 0-5 take" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("code", "points", "reason"),
    [
        ("import no_such_module", {"giving": "brought:Giving"}, "ModuleNotFoundError"),
        ("Giving = 1 .real", {"giving": "brought:Giving"}, "TypeError"),
        ("class Giving: name = 'giving'", {"giving": "brought:Giving"}, "Giving is no subclass of"),
        (GIVING, {"other": "brought:Giving"}, "it calls itself 'giving'; both names must be the same"),
    ],
)
def test_a_strategy_that_cannot_be_had_stops_the_partitioner(
    site: Path, tmp_path: Path, code: str, points: dict[str, str], reason: str
) -> None:
    bring(site, tmp_path, code, points)
    with pytest.raises(ConfigError, match=f"of brought .* cannot be used: {reason}"):
        create_app(Config(partition=PartitionConfig(models_dir=tmp_path)))


def test_nobody_takes_the_name_of_a_strategy_that_is_there(site: Path, tmp_path: Path) -> None:
    code = GIVING.format(seats="None").replace("giving", "uniform")
    bring(site, tmp_path, code, {"uniform": "brought:Giving"})
    with pytest.raises(ConfigError, match="there are two strategies 'uniform'"):
        create_app(Config(partition=PartitionConfig(models_dir=tmp_path)))


def test_an_unknown_default_ends_the_process_with_one_line(tmp_path: Path) -> None:
    """And a package is found by a real process as by this one."""
    install(EXAMPLE, tmp_path)
    settings = {
        "BUTTERFLY_PARTITION__DEFAULT_STRATEGY": "magic",
        "BUTTERFLY_PARTITION__BIND_ADDRESS": "127.0.0.1:0",
        "PYTHONPATH": str(tmp_path),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "services.partitioner"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "butterfly partitioner: partition.default_strategy: 'magic' should be one of"
        " fewest_nodes, load_balanced, topology_aware, uniform"
    ]
