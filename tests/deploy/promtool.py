"""Prometheus's own checker: the machine's, else out of Debian's package, which is unpacked and not installed."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.deploy.rendered import ROOT

KEPT = ROOT / ".butterfly" / "promtool"


class NoPromtool(Exception):
    """The message says why there is none."""


def find_promtool() -> Path:
    """Raises `NoPromtool`."""
    installed = shutil.which("promtool")
    if installed is not None:
        return Path(installed)
    unpacked = KEPT / "usr" / "bin" / "promtool"
    if not unpacked.exists():
        _unpack(KEPT)
    return unpacked


def _unpack(folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise NoPromtool("promtool is not installed, and there is no apt-get to fetch Debian's package `prometheus`")
    folder.mkdir(parents=True, exist_ok=True)
    if not _succeeds(["apt-get", "download", "-qq", "prometheus"], folder) and os.geteuid() == 0:
        _succeeds(["apt-get", "update", "-qq"], folder)
        _succeeds(["apt-get", "download", "-qq", "prometheus"], folder)
    for package in folder.glob("prometheus_*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        package.unlink()
        return
    raise NoPromtool("promtool is not installed, and Debian's package `prometheus` cannot be fetched")


def _succeeds(command: list[str], folder: Path) -> bool:
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
