"""A Docker engine for the container tests: the machine's own, else one of theirs that leaves nothing behind."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("docker.io", "iptables", "mmdebstrap")
START_LIMIT_S = 60.0
STOP_LIMIT_S = 60.0
BASE_IMAGES = ("debian:bookworm-slim", "python:3.12-slim-bookworm")
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_NO_RULES = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
"""
"""What these two tables hold before anybody has used them; `iptables-save` prints only used ones."""


class NoEngine(Exception):
    """The message says why there can be none here."""


def tell(line: str) -> None:
    """On the real standard error: these steps take their time, and pytest keeps output until a test fails."""
    print(f"containers: {line}", file=sys.__stderr__, flush=True)


@contextmanager
def docker_engine() -> Iterator[Mapping[str, str]]:
    """The environment in which `docker` reaches an engine that has the base images. Raises `NoEngine`."""
    if shutil.which("docker") and _succeeds(["docker", "info"], os.environ):
        yield dict(os.environ)
        return
    _install()
    with tempfile.TemporaryDirectory(prefix="butterfly-docker-") as scratch, _started(Path(scratch)) as environ:
        _base_images(environ)
        yield environ


def _install() -> None:
    """The engine, out of Debian's packages."""
    if platform.system() != "Linux" or os.geteuid() != 0:
        raise NoEngine("no Docker engine answers here, and only root can start one on Linux")
    if all(shutil.which(program) for program in ("docker", "dockerd", "iptables-save", "mmdebstrap")):
        return
    if shutil.which("apt-get") is None:
        raise NoEngine(f"no Docker engine is installed, and there is no apt-get to install {', '.join(PACKAGES)}")
    tell(f"installing {', '.join(PACKAGES)}")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise NoEngine(f"`{' '.join(command)}` failed: {done.stderr.strip()[-300:]}")


@contextmanager
def _started(scratch: Path) -> Iterator[Mapping[str, str]]:
    """A dockerd with all that it keeps in `scratch`. What it does to the machine's network is put back."""
    host = f"unix://{scratch}/docker.sock"
    environ = {**os.environ, "DOCKER_HOST": host, "DOCKER_CONFIG": f"{scratch}/config"}
    saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=False)
    if saved.returncode != 0:
        raise NoEngine(f"a Docker engine needs the right to set up networks here: {saved.stderr.strip()[-300:]}")
    forwarding = _FORWARDING.read_text()
    had_bridge = Path("/sys/class/net/docker0").exists()
    command = ["dockerd", "--data-root", f"{scratch}/data", "--exec-root", f"{scratch}/run"]
    command += ["--pidfile", f"{scratch}/pid", "--host", host]
    log = scratch / "dockerd.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    try:
        end_s = time.monotonic() + START_LIMIT_S
        while not _succeeds(["docker", "info"], environ):
            if process.poll() is not None or time.monotonic() > end_s:
                raise NoEngine(f"dockerd does not start here: {log.read_text()[-500:]}")
            time.sleep(0.2)
        yield environ
    finally:
        began_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        subprocess.run(["umount", f"{scratch}/run/netns/default"], capture_output=True, check=False)
        if not had_bridge:
            subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)
        subprocess.run(["iptables-restore"], input=_NO_RULES + saved.stdout, text=True, check=True)
        if _FORWARDING.read_text() != forwarding:
            _FORWARDING.write_text(forwarding)
        tell(f"the engine is stopped after {time.monotonic() - began_s:.0f} s")


def _base_images(environ: Mapping[str, str]) -> None:
    """Pulled where a registry is reached, else made here."""
    if all(_succeeds(["docker", "pull", "--quiet", image], environ) for image in BASE_IMAGES):
        return
    tell("making base images: no registry is reached")
    began_s = time.monotonic()
    script = Path(__file__).with_name("base_images.sh")
    done = subprocess.run([script, _python_prefix()], env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoEngine(f"{script.name} failed: {done.stderr.strip()[-500:]}")
    tell(f"base images made in {time.monotonic() - began_s:.0f} s")


def _python_prefix() -> Path:
    """Of a CPython 3.12 that runs wherever it is put."""
    if sys.version_info[:2] == (3, 12):
        return Path(sys.base_prefix)
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(versions.glob("3.12.*"))
    if not found:
        raise NoEngine(f"no registry is reached, and there is no CPython 3.12 below {versions} to make an image of")
    return found[-1]


def _succeeds(command: list[str], environ: Mapping[str, str]) -> bool:
    return (
        subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
    )
