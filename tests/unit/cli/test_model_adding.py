from pathlib import Path

import pytest

from services.cli.model_adding import Added, add_model
from services.cli.stores.model_folder import ModelFolder
from shared.domain.errors import InvalidInput, ModelNotFound, UnsupportedModel
from tests.fakes.file_server import serving

CONTENT = b"GGUF" + bytes(1_000)


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "Some Model.gguf"
    path.write_bytes(CONTENT)
    return path


def admit_all(_: Path) -> str:
    return ""


def refuse_all(_: Path) -> str:
    raise UnsupportedModel("not this one")


def add(source: str, folder: ModelFolder, name: str | None = None) -> Added:
    return add_model(source, folder, name=name, progress=lambda _there, _total: None, admitted=admit_all)


def files(folder: ModelFolder) -> list[str]:
    return [file.name for file in folder.path.rglob("*") if file.is_file()]


def test_a_file_is_added_under_its_own_name_or_a_given_one(folder: ModelFolder, source: Path) -> None:
    assert add(str(source), folder) == Added("some-model", is_new=True)
    assert add(str(source), folder, "other") == Added("other", is_new=True)
    assert folder.names() == ["other", "some-model"]
    assert folder.existing("other").read_bytes() == CONTENT


def test_adding_the_same_file_again_changes_nothing(folder: ModelFolder, source: Path) -> None:
    add(str(source), folder)
    assert add(str(source), folder) == Added("some-model", is_new=False)


def test_another_model_of_the_same_name_is_refused(folder: ModelFolder, source: Path) -> None:
    add(str(source), folder)
    source.write_bytes(CONTENT + b"else")
    with pytest.raises(InvalidInput, match="another model 'some-model' is there"):
        add(str(source), folder)
    assert folder.existing("some-model").read_bytes() == CONTENT


def test_a_model_that_is_not_admitted_leaves_nothing(folder: ModelFolder, source: Path) -> None:
    with pytest.raises(UnsupportedModel, match="not this one"):
        add_model(str(source), folder, progress=lambda _there, _total: None, admitted=refuse_all)
    assert files(folder) == []


def test_a_model_comes_from_a_url(folder: ModelFolder) -> None:
    with serving(CONTENT) as server:
        assert add(server.url, folder) == Added("a-model", is_new=True)
    assert files(folder) == ["a-model.gguf"]


def test_a_name_that_would_leave_the_folder_is_refused(folder: ModelFolder, source: Path) -> None:
    with pytest.raises(InvalidInput, match="is no model name"):
        add(str(source), folder, "../outside")


def test_a_removed_model_is_gone_and_an_unknown_one_is_named(folder: ModelFolder, source: Path) -> None:
    add(str(source), folder)
    folder.remove("some-model")
    assert folder.names() == []
    with pytest.raises(ModelNotFound, match="no model 'some-model'"):
        folder.remove("some-model")
