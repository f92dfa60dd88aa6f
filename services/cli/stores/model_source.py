"""Brings a model file from a path or a URL into the models folder, as a part file still to be checked."""

import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from services.cli.stores.model_folder import ModelFolder, chunks_of
from shared.domain.errors import BadModelFile, InvalidInput, PeerUnavailable

_MAGIC = b"GGUF"
_SILENCE_S = 30.0
_RANGE_NOT_SATISFIABLE = 416
_TRIES = 5
"""A download that broke goes on where it was."""

Progress = Callable[[int, int | None], None]
"""Bytes there, bytes in all if known."""


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def copy_file(source: Path, part: Path, folder: ModelFolder) -> None:
    """Raises `InvalidInput` for a path that cannot be read or does not fit, `BadModelFile` for no GGUF file."""
    try:
        if not source.is_file():
            raise InvalidInput(f"{source} is no file")
        with source.open("rb") as file:
            _check_magic(file.read(len(_MAGIC)), str(source))
        folder.check_room(source.stat().st_size)
        shutil.copyfile(source, part)
    except OSError as error:
        raise InvalidInput(f"{source} cannot be copied: {error.strerror}") from None


class Download:
    """One file of a web server, resumed as long as the server says that it is still the same one."""

    def __init__(self, url: str, part: Path, folder: ModelFolder, progress: Progress) -> None:
        self._url = url
        self._part = part
        self._tag_file = part.with_name(f"{part.name}.tag")
        self._folder = folder
        self._progress = progress

    def run(self) -> None:
        """Raises `BadModelFile` when the server gives no GGUF file, `PeerUnavailable` when it fails for good.

        What came until then is kept for the next time.
        """
        reason, tries = "", 0
        while tries < _TRIES:
            tries += 1
            before = self._have()
            try:
                if self._fetch_rest():
                    self._tag_file.unlink(missing_ok=True)
                    return
                reason = "it closed the connection early"
            except urllib.error.HTTPError as error:
                if error.code != _RANGE_NOT_SATISFIABLE or not before:
                    raise PeerUnavailable(f"{self._url}: the server answered {error.code} {error.reason}") from None
                self._part.unlink()  # what we kept is not the start of this file
                continue
            except (OSError, HTTPException) as error:
                reason = str(error.reason if isinstance(error, urllib.error.URLError) else error)
            if self._have() == before:
                break
        raise PeerUnavailable(f"{self._url}: {reason}; {self._have()} bytes are kept: the same command goes on there")

    def _fetch_rest(self) -> bool:
        """Whether the file is complete now."""
        with self._request() as response:
            is_rest = response.status == 206
            start = self._have() if is_rest else 0
            total = _total_bytes(response, start)
            self._folder.check_room((total or start) - start)
            self._remember_tag(response)
            there, most = start, start + self._folder.room_bytes() if total is None else total
            with self._part.open("ab" if is_rest else "wb") as file:
                for chunk in chunks_of(response):
                    if there == 0:
                        _check_magic(chunk[: len(_MAGIC)], self._url)
                    there += len(chunk)
                    if there > most:
                        raise BadModelFile(f"{self._url}: longer than announced, or than the disk has room")
                    file.write(chunk)
                    self._progress(there, total)
        return total is None or there == total

    def _request(self) -> HTTPResponse:
        request = urllib.request.Request(self._url, headers={"User-Agent": "butterfly-cli"})  # noqa: S310  is_url
        tag = self._tag_file.read_text() if self._tag_file.exists() else ""
        if tag and self._have():
            request.add_header("Range", f"bytes={self._have()}-")
            request.add_header("If-Range", tag)
        response = urllib.request.urlopen(request, timeout=_SILENCE_S)  # noqa: S310  is_url
        if not isinstance(response, HTTPResponse):
            raise AssertionError("an HTTP URL gives an HTTP response")
        return response

    def _remember_tag(self, response: HTTPResponse) -> None:
        tag = response.headers.get("ETag", "")
        self._tag_file.write_text("" if tag.startswith("W/") else tag)

    def _have(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0


def _total_bytes(response: HTTPResponse, start: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _check_magic(found: bytes, source: str) -> None:
    if found != _MAGIC:
        raise BadModelFile(f"{source} begins with {found!r}, not {_MAGIC!r}: it is no GGUF file")
