"""What is in the images, and what is not."""

import json

import pytest

from tests.containers.compose import Engine
from tests.containers.engine import tell

CONTROL, WORKER, SETUP = "butterfly-control:0.1.0", "butterfly-worker:0.1.0", "butterfly-setup:0.1.0"
BASE = "python:3.12-slim-bookworm"
SERVICES = {CONTROL: {"api", "coordinator", "metrics", "partitioner", "scheduler"}, WORKER: {"worker"}}
ADDED_MB = {CONTROL: 75, WORKER: 120, SETUP: 175}
"""The most that an image may add to its base, which is about 125 MB where it is the public one: 200 MB for the control
services. The worker needs numpy too, setup has the demo model."""
TOOLS = ("gcc", "cc", "g++", "clang", "ld", "as", "make", "strip", "git", "curl", "wget")
UNWANTED = """
import json, pathlib, shutil
places = {"tests": "/opt", "conftest.py": "/opt", "test_*.py": "/opt/butterfly"}
tests = [str(path) for name, place in places.items() for path in pathlib.Path(place).rglob(name)]
settings = [str(path) for folder in ("/etc/butterfly", "/data") for path in pathlib.Path(folder).iterdir()]
print(json.dumps({"tools": [tool for tool in %r if shutil.which(tool)], "tests": tests, "settings": settings}))
"""


@pytest.mark.parametrize("image", [CONTROL, WORKER])
def test_an_image_holds_its_own_services_and_can_load_them(engine: Engine, image: str) -> None:
    listed = (
        "import json, pathlib; print(json.dumps([p.name for p in pathlib.Path('services').iterdir() if p.is_dir()]))"
    )
    held = {name for name in json.loads(engine.python(image, listed)) if not name.startswith("__")}
    assert held == SERVICES[image]
    apps = ", ".join(f"services.{name}.app" for name in sorted(held))
    load = "from shared.llama.library import load_library; print(load_library().build_class)"
    assert engine.python(image, f"import {apps}\n{load}").startswith("llama/")


@pytest.mark.parametrize("image", [CONTROL, WORKER, SETUP])
def test_no_compiler_no_test_and_no_setting_is_inside(engine: Engine, image: str) -> None:
    assert json.loads(engine.python(image, UNWANTED % (TOOLS,))) == {"tools": [], "tests": [], "settings": []}


@pytest.mark.parametrize("image", [CONTROL, WORKER, SETUP])
def test_no_secret_is_in_an_image(engine: Engine, image: str) -> None:
    told = json.dumps(engine.inspect(image)["Config"]["Env"]) + engine.docker("history", "--no-trunc", image)
    assert [
        word for word in ("TOKEN", "PASSWORD", "SECRET", "redis://", "index-url", "find-links") if word in told
    ] == []


@pytest.mark.parametrize("image", [CONTROL, WORKER, SETUP])
def test_an_image_says_what_it_is_and_runs_without_rights(engine: Engine, image: str) -> None:
    config = engine.inspect(image)["Config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.title"] == image.partition(":")[0]
    assert config["Labels"]["org.opencontainers.image.version"] == image.rpartition(":")[2]
    version = "from shared.runtime.version import butterfly_version; print(butterfly_version())"
    assert engine.python(image, version).strip() == image.rpartition(":")[2]


@pytest.mark.parametrize("image", [CONTROL, WORKER, SETUP])
def test_an_image_adds_little_to_its_base(engine: Engine, image: str) -> None:
    added_mb = (engine.inspect(image)["Size"] - engine.inspect(BASE)["Size"]) / 1e6
    tell(f"{image}: {engine.inspect(image)['Size'] / 1e6:.0f} MB, {added_mb:.0f} of them beyond {BASE}")
    assert added_mb <= ADDED_MB[image]


def test_a_service_without_settings_says_what_it_lacks(engine: Engine) -> None:
    with pytest.raises(AssertionError, match=r"redis\.url is not set"):
        engine.docker("run", "--rm", "--network", "none", CONTROL, "services.coordinator")
