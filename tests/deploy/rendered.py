"""The Kubernetes objects as kustomize renders them."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("dev", "prod", "outside")
NAME_LABEL = "app.kubernetes.io/name"
Object = dict[str, Any]  # YAML as Kubernetes gets it


@cache
def render(overlay: str) -> tuple[Object, ...]:
    kubectl = Path(sys.executable).with_name("kubectl")
    folder = ROOT / "deploy" / "kubernetes" / "overlays" / overlay
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> list[Object]:
    return [item for item in render(overlay) if item["kind"] in kinds]


@dataclass(frozen=True)
class Workload:
    name: str
    labels: dict[str, str]
    """Of its pods."""
    selector: dict[str, str]
    pod: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @property
    def main(self) -> Object:
        (container,) = self.pod["containers"]
        found: Object = container
        return found

    @property
    def service(self) -> str | None:
        """Which of ours runs here; None: none of ours."""
        image = self.main["image"].rpartition("/")[2].partition(":")[0]
        if image == "butterfly-worker":
            return "worker"
        return str(self.main["args"][0]).removeprefix("services.") if image == "butterfly-control" else None


def workloads(overlay: str) -> list[Workload]:
    return [
        Workload(
            name=item["metadata"]["name"],
            labels=item["spec"]["template"]["metadata"]["labels"],
            selector=item["spec"]["selector"]["matchLabels"],
            pod=item["spec"]["template"]["spec"],
        )
        for item in of_kind(overlay, "Deployment", "StatefulSet")
    ]


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """A pod selector of a NetworkPolicy."""
    exact = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    listed = selector.get("matchExpressions", [])
    assert all(rule["operator"] == "In" for rule in listed)
    return exact and all(labels.get(rule["key"]) in rule["values"] for rule in listed)


def allowed_edges(overlay: str, direction: str) -> Iterator[tuple[str, str, int]]:
    """(caller, called, port) between the workloads that NetworkPolicies of `direction` (Ingress, Egress) allow."""
    here, there = ("from", "to") if direction == "Ingress" else ("to", "from")
    assert {here, there} == {"from", "to"}
    for policy in of_kind(overlay, "NetworkPolicy"):
        spec = policy["spec"]
        for rule in spec.get(direction.lower(), []):
            peers = [peer["podSelector"] for peer in rule.get(here, []) if "podSelector" in peer]
            for own in workloads(overlay):
                if not matches(spec["podSelector"], own.labels):
                    continue
                for other in workloads(overlay):
                    if any(matches(peer, other.labels) for peer in peers):
                        caller, called = (other, own) if direction == "Ingress" else (own, other)
                        yield from ((caller.name, called.name, port["port"]) for port in rule["ports"])
