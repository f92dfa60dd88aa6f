from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.worker.ports import StageSource
from services.worker.stores.stage_files import CachedStageFiles
from shared.contracts.messages import StageRef
from shared.contracts.partitioner import StageFileInfo
from shared.domain.errors import BadModelFile, PeerUnavailable
from shared.domain.ids import ModelId
from shared.domain.plan import LayerRange
from shared.llama.cutting import cut_stage, open_model
from tests.fakes.tiny_models import write_tiny_model

REF = StageRef(model_id=ModelId("tiny"), model_root="root", layers=LayerRange(0, 2), num_layers=6)


class Source(StageSource):
    """Serves the first two layers of a tiny model, in pieces."""

    def __init__(self, model: Path) -> None:
        self._stage = cut_stage(open_model(model), 0, 2)
        self.data = b"".join(self._stage.read(0, self._stage.size_bytes))
        self.starts: list[int] = []
        self.break_after: list[int] = []
        """Bytes that the next downloads bring before they break, one each."""

    async def info(self, ref: StageRef) -> StageFileInfo:
        return StageFileInfo(
            model_id=ref.model_id,
            model_root="root",
            start=0,
            end=2,
            size_bytes=len(self.data),
            stage_digest=self._stage.stage_digest(),
            n_embd=128,
            num_layers=6,
        )

    async def download(self, ref: StageRef, *, start: int) -> AsyncIterator[bytes]:
        self.starts.append(start)
        stop = start + self.break_after.pop(0) if self.break_after else len(self.data)
        for at in range(start, stop, 50_000):
            yield self.data[at : min(at + 50_000, stop)]
        if stop < len(self.data):
            raise PeerUnavailable("the partitioner went away")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_stage_is_downloaded_once_and_kept_under_its_digest(tmp_path: Path, tiny_model: Path) -> None:
    source = Source(tiny_model)
    files = CachedStageFiles(tmp_path, source)
    file = await files.fetch(REF)
    assert file.path.read_bytes() == source.data
    assert file.path.name == f"{file.stage_digest}.gguf"
    assert await CachedStageFiles(tmp_path, source).fetch(REF) == file
    assert source.starts == [0]


async def test_a_broken_download_goes_on_where_it_ended(tmp_path: Path, tiny_model: Path) -> None:
    source = Source(tiny_model)
    source.break_after = [120_000, 1]
    file = await CachedStageFiles(tmp_path, source).fetch(REF)
    assert source.starts == [0, 120_000, 120_001]
    assert file.path.read_bytes() == source.data
    assert files_in(tmp_path) == [file.path]


async def test_a_source_that_brings_nothing_is_given_up_and_what_came_is_kept(tmp_path: Path, tiny_model: Path) -> None:
    source = Source(tiny_model)
    source.break_after = [60_000, 0, 0, 0]
    with pytest.raises(PeerUnavailable):
        await CachedStageFiles(tmp_path, source).fetch(REF)
    await CachedStageFiles(tmp_path, source).fetch(REF)
    assert source.starts[-1] == 60_000


async def test_a_file_that_changed_on_the_disk_is_downloaded_again(tmp_path: Path, tiny_model: Path) -> None:
    source = Source(tiny_model)
    files = CachedStageFiles(tmp_path, source)
    path = (await files.fetch(REF)).path
    damaged = bytearray(source.data)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    await files.fetch(REF)
    assert path.read_bytes() == source.data
    path.write_bytes(b"x" * len(source.data))
    await files.fetch(REF)
    assert path.read_bytes() == source.data


async def test_other_bytes_than_announced_are_refused_and_not_kept(tmp_path: Path, tiny_model: Path) -> None:
    source = Source(tiny_model)
    right = source.data
    source.data = right[:-1] + bytes([right[-1] ^ 1])
    files = CachedStageFiles(tmp_path, source)
    with pytest.raises(BadModelFile, match="other bytes"):
        await files.fetch(REF)
    assert files_in(tmp_path) == []
    source.data = right
    assert (await files.fetch(REF)).path.read_bytes() == right


async def test_a_stage_of_another_model_than_asked_for_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    other = REF.model_copy(update={"model_root": "another"})
    with pytest.raises(BadModelFile, match="not the model"):
        await CachedStageFiles(tmp_path, Source(tiny_model)).fetch(other)
