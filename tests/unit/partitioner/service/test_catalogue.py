from pathlib import Path

import pytest

from services.partitioner.service.catalogue import RESCAN_ON_MISS_EVERY_S, CatalogueService
from services.partitioner.stores.model_folder import ModelFolder
from shared.domain.errors import ModelNotFound, Unavailable, UnsupportedModel
from shared.domain.ids import ModelId
from tests.fakes.clock import FakeClock
from tests.fakes.gguf_files import small_model
from tests.fakes.tiny_models import write_tiny_model

TINY = ModelId("tiny")


class CountingFolder(ModelFolder):
    scans = 0

    def scan(self) -> None:
        self.scans += 1
        super().scan()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path) -> CountingFolder:
    return CountingFolder(tmp_path)


@pytest.fixture
def service(store: CountingFolder, clock: FakeClock) -> CatalogueService:
    return CatalogueService(store=store, now=clock.now_s)


async def completed(service: CatalogueService) -> CatalogueService:
    await service.rescan()
    await service.complete_pending()
    return service


async def test_a_model_is_refused_for_now_while_its_digests_are_computed(
    service: CatalogueService, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "tiny.gguf")
    await service.rescan()
    with pytest.raises(Unavailable, match="once per file") as caught:
        await service.get_model(TINY)
    assert caught.value.retry_after_s is not None
    models, refused = service.list_models()
    assert (models, [entry.file for entry in refused]) == ((), ["tiny.gguf"])


async def test_the_background_round_completes_what_a_scan_found(service: CatalogueService, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny.gguf")
    await completed(service)
    assert (await service.get_model(TINY)).num_layers == 6
    stage = await service.stage_file(TINY, 1, 3)
    assert len(stage.stage_digest()) == 64
    assert (await service.vocabulary_file(TINY)).size_bytes > 0
    assert len(await service.token_table(TINY)) > 512


async def test_a_file_that_cannot_be_served_is_told_in_the_log_once(
    service: CatalogueService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_model(tmp_path / "whole.gguf")
    (tmp_path / "torn.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:-100])
    await service.rescan()
    await service.rescan()
    told = [record for record in caplog.records if record.message == "model_refused"]
    assert [vars(record)["file"] for record in told] == ["torn.gguf"]


async def test_a_model_that_is_asked_for_is_looked_for_in_the_folder(
    service: CatalogueService, clock: FakeClock, tmp_path: Path
) -> None:
    await service.rescan()
    write_tiny_model(tmp_path / "tiny.gguf")
    await clock.advance(RESCAN_ON_MISS_EVERY_S)
    with pytest.raises(Unavailable, match="once per file"):
        await service.get_model(TINY)
    await service.complete_pending()
    assert (await service.get_model(TINY)).model_id == TINY


async def test_misses_do_not_scan_more_often_than_once_a_second(
    service: CatalogueService, store: CountingFolder, clock: FakeClock
) -> None:
    await service.rescan()
    for _ in range(3):
        with pytest.raises(ModelNotFound, match="'nothing'"):
            await service.get_model(ModelId("nothing"))
    assert store.scans == 1
    await clock.advance(RESCAN_ON_MISS_EVERY_S)
    with pytest.raises(ModelNotFound):
        await service.get_model(ModelId("nothing"))
    assert store.scans == 2


async def test_a_removed_model_is_gone_at_the_next_look(
    service: CatalogueService, clock: FakeClock, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "tiny.gguf")
    await completed(service)
    (tmp_path / "tiny.gguf").unlink()
    await clock.advance(RESCAN_ON_MISS_EVERY_S)
    with pytest.raises(ModelNotFound):
        await service.get_model(TINY)


async def test_a_bad_file_is_not_found_with_its_reason(service: CatalogueService, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGML, long ago")
    await service.rescan()
    with pytest.raises(ModelNotFound, match=r"cannot be served: bad\.gguf: has 14 bytes"):
        await service.get_model(ModelId("bad"))


async def test_a_family_that_runs_whole_has_one_stage_only(service: CatalogueService, tmp_path: Path) -> None:
    (tmp_path / "g.gguf").write_bytes(small_model(architecture="gemma2").to_bytes())
    await completed(service)
    assert (await service.stage_file(ModelId("g"), 0, 2)).size_bytes > 0
    with pytest.raises(UnsupportedModel, match="gemma2"):
        await service.stage_file(ModelId("g"), 0, 1)


async def test_it_is_ready_once_the_folder_is_read_and_a_model_can_be_served(
    service: CatalogueService, tmp_path: Path
) -> None:
    with pytest.raises(Unavailable, match="not read yet"):
        await service.check_ready()
    await service.rescan()
    await service.check_ready()  # no model at all is no reason to wait
    write_tiny_model(tmp_path / "tiny.gguf")
    await service.rescan()
    with pytest.raises(Unavailable, match="no model is ready"):
        await service.check_ready()
    await service.complete_pending()
    await service.check_ready()


async def test_a_model_that_changes_while_it_is_digested_is_taken_as_it_is_then(
    service: CatalogueService, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "tiny.gguf")
    await service.rescan()
    write_tiny_model(tmp_path / "tiny.gguf", num_layers=2)
    await service.complete_pending()
    await service.complete_pending()
    assert (await service.get_model(TINY)).num_layers == 2
