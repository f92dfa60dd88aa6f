"""Stage files on this node's disk, named by their digest, fetched when missing."""

import asyncio
import logging
import os
import re
from pathlib import Path

from services.worker.ports import StageFile, StageFiles, StageSource
from shared.contracts.messages import StageRef
from shared.contracts.partitioner import StageFileInfo
from shared.domain.errors import BadModelFile, Unavailable
from shared.llama.cutting import stage_digest_of

log = logging.getLogger(__name__)

MAX_BARREN_TRIES = 3  # downloads in a row that bring nothing, before the caller hears of it
_DIGEST = re.compile(r"[0-9a-f]{64}")


class CachedStageFiles(StageFiles):
    """`<digest>.gguf` is complete and was right when written; `<digest>.part` is a download to go on with."""

    def __init__(self, folder: Path, source: StageSource) -> None:
        self._folder = folder
        self._source = source
        self._locks: dict[str, asyncio.Lock] = {}

    async def fetch(self, ref: StageRef) -> StageFile:
        info = await self._source.info(ref)
        if info.model_root != ref.model_root or _DIGEST.fullmatch(info.stage_digest) is None:
            raise BadModelFile(f"the partitioner's {ref.model_id} is not the model {ref.model_root[:12]} asked for")
        async with self._locks.setdefault(info.stage_digest, asyncio.Lock()):
            path = self._folder / f"{info.stage_digest}.gguf"
            if not await asyncio.to_thread(_is_right, path, info):
                await self._download(ref, info, path)
        return StageFile(path, info.stage_digest, info.size_bytes)

    async def _download(self, ref: StageRef, info: StageFileInfo, path: Path) -> None:
        """Resumes what an earlier try left; each try that brings bytes is followed by another."""
        self._folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        barren_tries = 0
        while (have := _size_of(part)) < info.size_bytes:
            try:
                await self._append(ref, part, have, info.size_bytes)
            except Unavailable as error:
                barren_tries = barren_tries + 1 if _size_of(part) == have else 0
                log.warning("stage_download_interrupted", extra={"have": _size_of(part), "code": error.code})
                if barren_tries >= MAX_BARREN_TRIES:
                    raise
        if not await asyncio.to_thread(_is_right, part, info):
            part.unlink()
            raise BadModelFile(f"layers {ref.layers} of {ref.model_id} came with other bytes than announced")
        await asyncio.to_thread(_publish, part, path)

    async def _append(self, ref: StageRef, part: Path, have: int, size_bytes: int) -> None:
        with part.open("ab") as file:
            async for chunk in self._source.download(ref, start=have):
                have += len(chunk)
                if have > size_bytes:
                    file.truncate(0)
                    raise BadModelFile(f"layers {ref.layers} of {ref.model_id} are longer than announced")
                file.write(chunk)
        if have < size_bytes:
            raise Unavailable(f"the download of layers {ref.layers} ended early")


def _is_right(path: Path, info: StageFileInfo) -> bool:
    """Checked before every load: a disk may err, and the file may be another process's."""
    if _size_of(path) != info.size_bytes:
        return False
    try:
        return stage_digest_of(path) == info.stage_digest
    except BadModelFile:
        return False


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _publish(part: Path, path: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
