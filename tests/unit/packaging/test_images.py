"""The texts that images are built from agree with the code and with one another."""

import re
import runpy
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from services.cli.stores.demo_model import DEMO_MODEL
from shared.runtime.config import BIND_KEYS, ENV_PREFIX, load_config

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "deploy" / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = [name for name, service in COMPOSE["services"].items() if service["image"].startswith("butterfly-")]


def locked(target: str) -> set[str]:
    lines = (DOCKER / f"requirements-{target}.lock").read_text().splitlines()
    return {line.partition(" \\")[0].strip() for line in lines if "==" in line}


def test_the_health_check_knows_the_address_of_every_service() -> None:
    keys = {f"{ENV_PREFIX}{key.replace('.', '__').upper()}" for key in BIND_KEYS.values()}
    assert set(runpy.run_path(str(DOCKER / "healthcheck.py"))["BIND_VARIABLES"]) == keys


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the loopback has one address")
@pytest.mark.parametrize(("listens", "bound"), [("127.0.0.2", "127.0.0.2"), ("127.0.0.1", "0.0.0.0")])
def test_the_health_check_asks_where_the_service_listens(listens: str, bound: str) -> None:
    with HTTPServer((listens, 0), _Ready) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        environ = {"BUTTERFLY_NETWORK__LISTEN_ADDRESS": f"{bound}:{server.server_port}"}
        command = [sys.executable, "-S", str(DOCKER / "healthcheck.py")]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        thread.join()
        server.server_close()
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"{bound}:{server.server_port}: " in done.stderr


def test_the_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert set(re.findall(r"ARG VERSION=(\S+)", DOCKERFILE)) == {version}
    assert {COMPOSE["services"][name]["image"].rpartition(":")[2] for name in OURS} == {version}


def test_the_demo_model_in_the_image_is_the_one_that_is_pulled() -> None:
    line = (DOCKER / "requirements-demo-model.lock").read_text().splitlines()[-1]
    assert line == f"{DEMO_MODEL.requirement} --hash=sha256:{DEMO_MODEL.wheel_sha256}"
    assert f"unpacked/{DEMO_MODEL.member} /models/{DEMO_MODEL.name}.gguf" in DOCKERFILE


@pytest.mark.parametrize("target", ["control", "worker"])
def test_an_image_installs_what_the_lock_says(target: str) -> None:
    packages = {f"{p['name']}=={p['version']}" for p in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    chosen = {requirement.partition(" ;")[0] for requirement in locked(target)}
    assert chosen <= packages
    wanted = {name.partition("[")[0] for name in PROJECT["dependency-groups"][target]}
    assert wanted <= {requirement.partition("==")[0] for requirement in chosen}


def test_a_worker_image_has_no_client_of_redis() -> None:
    assert not any(requirement.startswith("redis==") for requirement in locked("worker"))


def test_the_classic_builder_can_build_it_too() -> None:
    assert not re.search(r"^# *syntax|--mount|<<", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("name", OURS)
def test_the_settings_in_the_compose_file_are_accepted(name: str) -> None:
    variables = COMPOSE["services"][name].get("environment", {})
    load_config(None, {key: value for key, value in variables.items() if key != "BUTTERFLY_CONFIG"})
