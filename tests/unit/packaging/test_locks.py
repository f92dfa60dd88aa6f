"""What is installed comes from the public index alone, whatever the machine that wrote the lock was set to."""

import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[3]
LOCKS = sorted([*ROOT.glob("*.lock"), *ROOT.glob("requirements*.txt"), *ROOT.glob("deploy/**/*requirements*")])
PUBLIC_HOSTS = {"pypi.org", "files.pythonhosted.org"}
FORBIDDEN = ("file:", "find-links", "extra-index-url", "trusted-host", "index-strategy")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_holds_no_option_or_path_of_a_machine(lock: Path) -> None:
    text = lock.read_text().lower()
    assert [word for word in FORBIDDEN if word in text] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_no_host_but_the_public_index_and_no_credentials(lock: Path) -> None:
    urls = [urlsplit(url) for url in re.findall(r"[a-z+]+://[^\s\"',}]+", lock.read_text())]
    assert {url.hostname for url in urls} <= PUBLIC_HOSTS
    assert [url for url in urls if url.username or url.password or "@" in url.netloc] == []
    assert {url.scheme for url in urls} <= {"https"}


def test_every_locked_package_comes_with_hashes() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    registry = [package for package in packages if "registry" in package["source"]]
    assert registry
    for package in registry:
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert files, package["name"]
        assert all(file["hash"].startswith("sha256:") for file in files), package["name"]
    others = [package for package in packages if "registry" not in package["source"]]
    assert [(package["name"], package["source"]) for package in others] == [("butterfly", {"editable": "."})]
