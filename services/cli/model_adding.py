"""Adds a model of anybody's to the models folder: fetched, checked, tried, then named."""

import filecmp
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.cli.admission import admit
from services.cli.domain.model_names import checked, name_from
from services.cli.stores.model_folder import ModelFolder
from services.cli.stores.model_source import Download, Progress, copy_file, is_url
from shared.domain.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Added:
    name: str
    is_new: bool
    """False: the very same file was there already."""
    notice: str = ""
    """What the operator should know about it."""


def add_model(
    source: str,
    folder: ModelFolder,
    *,
    name: str | None = None,
    progress: Progress,
    admitted: Callable[[Path], str] = admit,
) -> Added:
    """Fetch, check and name it. If anything is raised, the folder is as before.

    Raises `InvalidInput` and `PeerUnavailable` when it cannot be had, `BadModelFile` and `UnsupportedModel` when it is
    refused.
    """
    wanted = name_from(source) if name is None else checked(name)
    target = folder.path_of(wanted)
    if target.exists():
        if not is_url(source) and filecmp.cmp(source, target, shallow=False):
            return Added(wanted, is_new=False)
        raise InvalidInput(f"another model {wanted!r} is there: remove it first, or give this one another --name")
    part = folder.part_of(wanted)
    if is_url(source):
        Download(source, part, folder, progress).run()
    try:
        if not is_url(source):
            copy_file(Path(source), part, folder)
        notice = admitted(part)
        folder.publish(part, wanted)
    finally:
        part.unlink(missing_ok=True)
    return Added(wanted, is_new=True, notice=notice)
