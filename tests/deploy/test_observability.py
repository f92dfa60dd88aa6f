"""Rules and dashboards ask for series that the services really have."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from services.api.metrics import GatewayMetrics
from services.coordinator.own_series import CoordinatorMetrics
from services.scheduler.own_series import QueueWatch, SchedulerMetrics
from shared.registry.base import QueueView
from shared.runtime.app import make_app
from shared.runtime.clock import SystemClock
from shared.runtime.config import Config
from shared.runtime.telemetry import Telemetry
from tests.deploy.promtool import NoPromtool, find_promtool
from tests.deploy.rendered import ROOT, of_kind
from tests.fakes.task_registry import MemoryTaskRegistry

RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
ALERT_TESTS = Path(__file__).with_name("alerts.yml")
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "butterfly.json"
OF_PROMETHEUS = {"up"}
NAME = re.compile(r"\b(?:job:[\w:]+|up|[a-z_]+_[a-z_]+)\b(?=[{\[)\s]|$)")
"""A series in a PromQL expression: it is followed by its labels, its range, or the end of what it stands in."""
FUNCTIONS = {"histogram_quantile"}
TOLD_BY_ALL = re.compile(
    r'butterfly_nodes\b|butterfly_queue_\w+|butterfly_tasks_running|node_failures_total\{reason="lease"\}'
)
"""What every replica of a service tells alike: a sum over them would count it once for each."""
AS_MAXIMUM = re.compile(rf"max(?: by \(\w+\) )?\((?:increase\()?(?:{TOLD_BY_ALL.pattern})")


def groups() -> list[dict[str, object]]:
    found: list[dict[str, object]] = yaml.safe_load(RULES.read_text())["groups"]
    return found


def rules() -> Iterator[dict[str, str]]:
    for group in groups():
        listed = group["rules"]
        assert isinstance(listed, list)
        yield from listed


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [rule["expr"] for rule in rules()] + [target["expr"] for panel in panels for target in panel["targets"]]


async def exposed() -> set[str]:
    """The names in what the services answer at /metrics, as Prometheus stores them."""
    clock = SystemClock()
    telemetry = Telemetry(source="any", address="127.0.0.1:1", config=Config(), clock=clock)
    GatewayMetrics(telemetry.registry, now=clock.now_s)
    watch = QueueWatch(registry=MemoryTaskRegistry(), clock=clock)
    watch.view = QueueView(depth=0, oldest_age_s=None, by_priority={}, running=0)
    telemetry.registry.register(SchedulerMetrics(watch, {}))
    telemetry.registry.register(CoordinatorMetrics(dict))
    transport = httpx.ASGITransport(make_app("any", routers=[], registry=telemetry.registry))
    async with httpx.AsyncClient(transport=transport, base_url="http://any") as client:
        text = (await client.get("/metrics")).text
    names = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        names |= {f"{name}{end}" for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    assert "tasks_total" in names
    return names


async def test_every_series_that_is_asked_for_exists() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = await exposed() | recorded | OF_PROMETHEUS
    for expression in expressions():
        grouped = re.sub(r"\bby \([^)]*\)|\{[^}]*\}", " ", expression)
        asked = set(NAME.findall(grouped)) - FUNCTIONS
        assert asked, expression
        assert asked <= known, expression


def test_what_all_replicas_tell_alike_is_read_as_a_maximum() -> None:
    asked = [expression for expression in expressions() if TOLD_BY_ALL.search(expression)]
    assert len(asked) >= 6
    for expression in asked:
        assert len(AS_MAXIMUM.findall(expression)) == len(TOLD_BY_ALL.findall(expression)), expression


def test_the_losses_of_nodes_are_summed_without_those_that_every_coordinator_tells() -> None:
    for expression in expressions():
        for labels in re.findall(r"node_failures_total(\{[^}]*\})?", expression):
            assert re.search(r'reason(=|!=)"(lease|evidence)"', labels), expression
            assert ("sum" in expression) == ('reason="lease"' not in labels), expression


def test_the_rules_in_kubernetes_are_those_of_the_file() -> None:
    (rule,) = of_kind("prod", "PrometheusRule")
    assert rule["spec"]["groups"] == groups()


@pytest.fixture(scope="module")
def promtool() -> Path:
    try:
        return find_promtool()
    except NoPromtool as error:
        pytest.skip(str(error))


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_rules_and_its_settings(promtool: Path) -> None:
    assert f"{len(list(rules()))} rules found" in run(promtool, "check", "rules", RULES)
    run(promtool, "check", "config", ROOT / "deploy" / "prometheus" / "prometheus.yml")


def test_every_alert_is_raised_when_it_should_be_and_not_before(promtool: Path) -> None:
    run(promtool, "test", "rules", ALERT_TESTS)
    tests = yaml.safe_load(ALERT_TESTS.read_text())["tests"]
    raised = {case["alertname"] for test in tests for case in test.get("alert_rule_test", []) if case.get("exp_alerts")}
    assert raised == {rule["alert"] for rule in rules() if "alert" in rule}


def test_the_panels_of_the_dashboard_stand_side_by_side() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_monitors_choose_ports_that_exist() -> None:
    ports = {port["name"] for item in of_kind("prod", "Service") for port in item["spec"]["ports"]}
    for monitor in of_kind("prod", "ServiceMonitor", "PodMonitor"):
        listed = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        assert {endpoint["port"] for endpoint in listed} <= ports
        assert {endpoint["path"] for endpoint in listed} == {"/metrics"}


def test_every_check_that_checkov_leaves_out_has_its_reason() -> None:
    text = (ROOT / "deploy" / "kubernetes" / "checkov" / "checkov.yaml").read_text()
    left_out = yaml.safe_load(text)["skip-check"]
    reasons = dict(re.findall(r"^  - (CKV_\w+) +# (.{20,})$", text, re.MULTILINE))
    assert reasons.keys() == set(left_out)
