"""The rendered objects against the code they run: `make k8s-check`."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from shared.runtime.app import make_app
from shared.runtime.config import BIND_KEYS, REDIS_URL_VARIABLE, check_exposure, load_config, split_address
from tests.deploy.rendered import (
    NAME_LABEL,
    OVERLAYS,
    ROOT,
    Object,
    Workload,
    allowed_edges,
    matches,
    of_kind,
    render,
    workloads,
)

CALLS = {
    "api": {"scheduler", "partitioner", "coordinator", "metrics"},
    "scheduler": {"partitioner", "coordinator", "metrics"},
    "coordinator": {"worker", "partitioner", "metrics"},
    "partitioner": {"metrics"},
    "worker": {"worker", "coordinator", "partitioner", "metrics"},
    "metrics": set[str](),
}
"""Who calls whom; everybody posts events to metrics."""
USES_REDIS = {"api", "scheduler", "coordinator"}
REDIS_PORT = 6379
POD_IP = "10.1.2.3"
POD_LABEL = "statefulset.kubernetes.io/pod-name"
DOMAIN = "butterfly.example.org"

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


def ours(overlay: str) -> Iterator[tuple[str, Workload]]:
    for workload in workloads(overlay):
        if workload.service is not None:
            yield workload.service, workload


def expanded(value: str) -> str:
    return value.replace("$(POD_NAME)", "worker-0").replace("$(POD_IP)", POD_IP)


def environment(overlay: str, workload: Workload) -> dict[str, str]:
    """As the container gets it; what comes from a Secret as a value that could be one."""
    maps = {item["metadata"]["name"]: item["data"] for item in of_kind(overlay, "ConfigMap")}
    found: dict[str, str] = {}
    for source in workload.main.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]]
    for variable in workload.main["env"]:
        if "value" in variable:
            found[variable["name"]] = expanded(variable["value"])
        elif "secretKeyRef" in variable["valueFrom"]:
            found[variable["name"]] = "redis://redis:6379/0" if variable["name"].endswith("REDIS__URL") else "a-secret"
    return found


@pytest.mark.parametrize("version", ["1.26", "1.31", "1.37"])
def test_the_schemas_accept_every_object(overlay: str, version: str, tmp_path: Path) -> None:
    known = [item for item in render(overlay) if not item["apiVersion"].startswith("monitoring.coreos.com/")]
    file = tmp_path / f"{overlay}.yaml"
    file.write_text(yaml.safe_dump_all(known))
    validate = Path(sys.executable).with_name("kubernetes-validate")
    done = subprocess.run([validate, "--strict", "-k", version, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARN" not in done.stdout + done.stderr


def test_all_services_are_there(overlay: str) -> None:
    assert {service for service, _ in ours(overlay)} == set(BIND_KEYS)


def test_the_settings_of_every_service_are_accepted_by_its_code(overlay: str) -> None:
    for service, workload in ours(overlay):
        config = load_config(None, environment(overlay, workload))
        section, key = BIND_KEYS[service].split(".")
        address = getattr(getattr(config, section), key)
        check_exposure(config, service, address)
        (port,) = workload.main["ports"]
        assert split_address(address) == ("0.0.0.0", port["containerPort"]), service
        assert (config.redis.url is not None) == (service in USES_REDIS), service


def test_urls_of_services_name_services_and_their_ports(overlay: str) -> None:
    ports = {item["metadata"]["name"]: item["spec"]["ports"][0]["port"] for item in of_kind(overlay, "Service")}
    for _, workload in ours(overlay):
        for name, value in environment(overlay, workload).items():
            if value.startswith("http://") and POD_IP not in value:
                url = re.fullmatch(r"http://([a-z]+):(\d+)", value)
                assert url is not None, (name, value)
                assert ports[url[1]] == int(url[2]), name


def test_a_variable_stands_before_those_that_name_it(overlay: str) -> None:
    for workload in workloads(overlay):
        defined: set[str] = set()
        for variable in workload.main.get("env", []):
            assert set(re.findall(r"\$\((\w+)\)", variable.get("value", ""))) <= defined, variable
            defined.add(variable["name"])


def test_every_coordinator_is_reached_by_an_address_of_its_own_and_signs_with_one_key(overlay: str) -> None:
    (workload,) = (workload for service, workload in ours(overlay) if service == "coordinator")
    config = load_config(None, environment(overlay, workload)).coordination
    (deployment,) = (item for item in of_kind(overlay, "Deployment") if item["metadata"]["name"] == workload.name)
    replicas, strategy = deployment["spec"]["replicas"], deployment["spec"]["strategy"]
    if overlay == "outside":  # one name, so one replica at a time
        assert (replicas, strategy) == (1, {"type": "Recreate"})
        assert config.advertise_url == f"https://coordinator.{DOMAIN}"
    else:
        assert replicas == {"dev": 1, "prod": 2}[overlay]
        assert config.advertise_url == f"http://{POD_IP}:{workload.main['ports'][0]['containerPort']}"
    (mount,) = (mount for mount in workload.main["volumeMounts"] if mount["mountPath"] == "/data")
    (volume,) = (volume for volume in workload.pod["volumes"] if volume["name"] == mount["name"])
    assert mount["readOnly"]
    assert volume["secret"] == {"secretName": "butterfly-coordinator-key", "defaultMode": 0o440}


def test_what_runs_several_times_is_spread_and_keeps_most_of_its_pods(overlay: str) -> None:
    budgets = {
        item["spec"]["selector"]["matchLabels"][NAME_LABEL]: item["spec"]["maxUnavailable"]
        for item in of_kind(overlay, "PodDisruptionBudget")
    }
    spread = {workload.name for workload in workloads(overlay) if "topologySpreadConstraints" in workload.pod}
    assert spread == {"api", "scheduler", "coordinator", "worker"}
    assert budgets == ({} if overlay == "dev" else dict.fromkeys(spread, 1))
    (workers,) = (workload for service, workload in ours(overlay) if service == "worker")
    (constraint,) = workers.pod["topologySpreadConstraints"]
    assert constraint["whenUnsatisfiable"] == ("ScheduleAnyway" if overlay == "dev" else "DoNotSchedule")


def test_workers_scale_with_the_queue_where_their_number_may_change(overlay: str) -> None:
    scaled = {
        item["spec"]["scaleTargetRef"]["name"]: item["spec"]["metrics"][0]
        for item in of_kind(overlay, "HorizontalPodAutoscaler")
    }
    assert scaled.keys() == {"dev": set(), "prod": {"api", "worker"}, "outside": {"api"}}[overlay]
    if "worker" in scaled:
        assert scaled["worker"]["external"]["metric"]["name"] == "butterfly_queue_depth"


async def test_probes_ask_for_what_every_service_answers(overlay: str) -> None:
    transport = httpx.ASGITransport(make_app("any", routers=[]))
    async with httpx.AsyncClient(transport=transport, base_url="http://any") as client:
        for service, workload in ours(overlay):
            asked = {kind: workload.main[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
            paths = {kind: get["path"] for kind, get in asked.items()}
            assert paths == {"startup": "/startupz", "readiness": "/readyz", "liveness": "/livez"}, service
            assert [(await client.get(path)).status_code for path in paths.values()] == [503, 200, 200]
            assert {get["port"] for get in asked.values()} == {workload.main["ports"][0]["name"]}


def test_selectors_match_the_pods_they_are_meant_for(overlay: str) -> None:
    pods = workloads(overlay)
    for workload in pods:
        assert matches({"matchLabels": workload.selector}, workload.labels)
        for spread in workload.pod.get("topologySpreadConstraints", []):
            assert matches(spread["labelSelector"], workload.labels)
    for item in of_kind(overlay, "Service"):
        name, selector = item["metadata"]["name"], dict(item["spec"]["selector"])
        pod_name = selector.pop(POD_LABEL, None)  # a Service of one pod of a StatefulSet
        chosen = [pod for pod in pods if matches({"matchLabels": selector}, pod.labels)]
        assert [pod.name for pod in chosen] == [name if pod_name is None else name.rpartition("-")[0]]
        assert pod_name in {None, name}
        target = item["spec"]["ports"][0]["targetPort"]
        assert target in {port["name"] for port in chosen[0].main["ports"]}
    for item in of_kind(overlay, "PodDisruptionBudget"):
        assert any(matches(item["spec"]["selector"], pod.labels) for pod in pods)
    for item in of_kind(overlay, "HorizontalPodAutoscaler"):
        assert item["spec"]["scaleTargetRef"]["name"] in {pod.name for pod in pods}


def test_every_container_is_restricted(overlay: str) -> None:
    for workload in workloads(overlay):
        pod = workload.pod
        assert pod["automountServiceAccountToken"] is False, workload.name
        assert pod["enableServiceLinks"] is False, workload.name
        assert pod["securityContext"]["runAsNonRoot"] is True, workload.name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, workload.name
        for container in workload.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, container["name"]
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), container["name"]
            assert "memory" in container["resources"]["limits"], container["name"]
            assert "cpu" not in container["resources"]["limits"], container["name"]


def test_every_image_is_one_of_the_build_and_has_its_tag(overlay: str) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    built = {service["image"] for service in compose["services"].values() if "build" in service}
    for workload in workloads(overlay):
        assert {container["image"] for container in workload.containers} <= built


def test_a_stop_has_more_time_than_the_service_takes(overlay: str) -> None:
    for _, workload in ours(overlay):
        assert workload.main["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "5"]}}
        assert workload.pod["terminationGracePeriodSeconds"] == 45


def test_secrets_come_by_reference_and_workers_have_only_the_join_token(overlay: str) -> None:
    for service, workload in ours(overlay):
        by_reference = {
            variable["name"]: variable["valueFrom"]["secretKeyRef"]["name"]
            for variable in workload.main["env"]
            if "secretKeyRef" in variable.get("valueFrom", {})
        }
        secret = {name for name in environment(overlay, workload) if name.endswith(("_TOKEN", "REDIS__URL"))}
        assert secret == by_reference.keys(), service
        assert REDIS_URL_VARIABLE not in environment(overlay, workload)
        if service == "worker":
            assert set(by_reference) == {"BUTTERFLY_SECURITY__JOIN_TOKEN"}


def test_nothing_is_allowed_by_default(overlay: str) -> None:
    (policy,) = (item for item in of_kind(overlay, "NetworkPolicy") if item["metadata"]["name"] == "default-deny")
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("direction", ["Ingress", "Egress"])
def test_the_allowed_edges_are_those_of_the_call_graph(overlay: str, direction: str) -> None:
    pods = workloads(overlay)
    ports = {pod.name: pod.main["ports"][0]["containerPort"] for pod in pods}
    wanted = {(caller, called, ports[called]) for caller, calls in CALLS.items() for called in calls}
    if "redis" in ports:
        wanted |= {(caller, "redis", REDIS_PORT) for caller in USES_REDIS}
    assert set(allowed_edges(overlay, direction)) == wanted


def test_only_the_gateway_is_open_to_others_and_where_they_join_the_workers(overlay: str) -> None:
    open_to_all = {
        policy["spec"]["podSelector"]["matchLabels"][NAME_LABEL]
        for policy in of_kind(overlay, "NetworkPolicy")
        for rule in policy["spec"].get("ingress", [])
        if "from" not in rule or any("ipBlock" in peer for peer in rule["from"])
    }
    types = {item["metadata"]["name"]: item["spec"].get("type", "ClusterIP") for item in of_kind(overlay, "Service")}
    reached = {name for name, kind in types.items() if kind != "ClusterIP"}
    if overlay == "outside":
        (workers,) = (item for item in of_kind(overlay, "StatefulSet") if item["metadata"]["name"] == "worker")
        assert open_to_all == {"api", "worker"}
        assert reached == {f"worker-{number}" for number in range(workers["spec"]["replicas"])}
    else:
        assert open_to_all == {"api"}
        assert reached == set()


def test_an_external_redis_is_reached_by_its_users_only(overlay: str) -> None:
    for policy in of_kind(overlay, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            if not any("ipBlock" in peer for peer in rule["to"]):
                continue
            chosen = {pod.name for pod in workloads(overlay) if matches(policy["spec"]["podSelector"], pod.labels)}
            if REDIS_PORT in {port["port"] for port in rule["ports"]}:
                assert chosen == USES_REDIS
            else:
                assert chosen == {"coordinator", "worker"}
                assert overlay == "outside"


def test_the_call_graph_is_that_of_the_code(overlay: str) -> None:
    for service in CALLS.keys() - {"worker"}:  # a worker is told its addresses when it registers
        app = (ROOT / "services" / service / "app.py").read_text()
        named = set(re.findall(r"\b(?:services|urls)\.(\w+)_url\b", app)) - {service}
        told = {"metrics"} if "Telemetry(" in app else set()
        assert named | told == CALLS[service] - {"worker"}, service
        assert ("redis" in app) == (service in USES_REDIS), service


def test_every_volume_that_is_mounted_is_there(overlay: str) -> None:
    for item in of_kind(overlay, "Deployment", "StatefulSet"):
        spec = item["spec"]
        there = {volume["name"] for volume in spec["template"]["spec"].get("volumes", [])}
        there |= {claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])}
        containers: list[Object] = [
            *spec["template"]["spec"].get("initContainers", []),
            *spec["template"]["spec"]["containers"],
        ]
        for container in containers:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= there
    claims = {item["metadata"]["name"] for item in of_kind(overlay, "PersistentVolumeClaim")}
    for workload in workloads(overlay):
        claimed = [volume.get("persistentVolumeClaim") for volume in workload.pod.get("volumes", [])]
        assert {claim["claimName"] for claim in claimed if claim} <= claims


def test_a_worker_outside_reaches_through_the_ingress_what_it_calls_and_nothing_else(overlay: str) -> None:
    if overlay != "outside":
        assert of_kind(overlay, "Ingress") == []
        return
    (ingress,) = of_kind(overlay, "Ingress")
    (coordinator,) = (workload for service, workload in ours(overlay) if service == "coordinator")
    config = load_config(None, environment(overlay, coordinator))
    told = {*config.services.partitioner_url, config.services.metrics_url, config.coordination.advertise_url}
    hosts = {rule["host"]: rule["http"]["paths"] for rule in ingress["spec"]["rules"]}
    assert told == {f"https://{host}" for host in hosts}
    assert set(ingress["spec"]["tls"][0]["hosts"]) == hosts.keys()
    for host, paths in hosts.items():
        service = host.partition(".")[0]
        assert {path["backend"]["service"]["name"] for path in paths} == {service}
        routes = importlib.import_module(f"services.{service}.routes")
        public = {path for path in routes.PUBLIC_PATHS if not path.endswith("/prometheus")}
        of_coordinators = {"/plans"} if service == "partitioner" else set()  # they call it by the same name
        assert {path["path"] for path in paths} == {"/livez", *public, *of_coordinators}, service


def test_a_worker_inside_is_called_by_the_name_of_its_own_address(overlay: str) -> None:
    (workers,) = (workload for service, workload in ours(overlay) if service == "worker")
    advertised = environment(overlay, workers)["BUTTERFLY_NETWORK__ADVERTISE_ADDRESS"]
    host, port = split_address(advertised)
    if overlay == "outside":
        (address,) = (item for item in of_kind(overlay, "Service") if item["metadata"]["name"] == "worker-0")
        assert host == address["metadata"]["annotations"]["external-dns.alpha.kubernetes.io/hostname"]
        assert port == address["spec"]["ports"][0]["port"]
    else:
        assert (host, port) == ("worker-0.worker", workers.main["ports"][0]["containerPort"])
