"""The models folder: whole GGUF files, named after their model. A file is there completely or not at all."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from services.cli.domain.model_names import SUFFIX, checked
from shared.domain.errors import BadModelFile, InvalidInput, ModelNotFound

_SPARE_BYTES = 256 * 1024 * 1024
"""Left free on the disk: a full disk stops Redis, too."""
CHUNK_BYTES = 1 << 20


class Readable(Protocol):
    def read(self, amount: int, /) -> bytes: ...


class ModelFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def path_of(self, name: str) -> Path:
        return self.path / f"{checked(name)}{SUFFIX}"

    def names(self) -> list[str]:
        return sorted(file.name.removesuffix(SUFFIX) for file in self.path.glob(f"*{SUFFIX}") if file.is_file())

    def existing(self, name: str) -> Path:
        """Raises `ModelNotFound`, naming what is there."""
        path = self.path_of(name)
        if not path.is_file():
            there = ", ".join(self.names()) or "nothing"
            raise ModelNotFound(f"no model {name!r} in {self.path} (there is {there}): `butterfly models add` adds one")
        return path

    def remove(self, name: str) -> None:
        self.existing(name).unlink()

    def part_of(self, name: str) -> Path:
        """Where the file of a model grows until it is complete and checked."""
        incoming = self.path / ".incoming"
        incoming.mkdir(parents=True, exist_ok=True)
        return incoming / f"{checked(name)}{SUFFIX}"

    def publish(self, part: Path, name: str) -> Path:
        """Give a complete, checked file its name; durable when this returns."""
        target = self.path_of(name)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return target

    def room_bytes(self) -> int:
        """What may still be written here."""
        self.path.mkdir(parents=True, exist_ok=True)
        return max(0, shutil.disk_usage(self.path).free - _SPARE_BYTES)

    def check_room(self, size_bytes: int) -> None:
        if size_bytes > self.room_bytes():
            raise InvalidInput(
                f"{size_bytes} bytes do not fit on the disk of {self.path} ({self.room_bytes()} are free)"
            )

    @contextmanager
    def new_part(self, name: str) -> Iterator[Path]:
        """A fresh part file, gone at the end unless published."""
        part = self.part_of(name)
        part.unlink(missing_ok=True)
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)


def write_stream(chunks: Iterable[bytes], file: IO[bytes], *, max_bytes: int) -> str:
    """Write the chunks and return their sha256 in hex. Raises `BadModelFile` beyond `max_bytes`."""
    digest, written = hashlib.sha256(), 0
    for chunk in chunks:
        written += len(chunk)
        if written > max_bytes:
            raise BadModelFile(f"the file is longer than {max_bytes} bytes")
        digest.update(chunk)
        file.write(chunk)
    return digest.hexdigest()


def chunks_of(file: Readable) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
