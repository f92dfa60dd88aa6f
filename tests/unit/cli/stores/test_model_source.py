from collections.abc import Iterator
from pathlib import Path

import pytest

from services.cli.stores.model_folder import ModelFolder
from services.cli.stores.model_source import Download, copy_file
from shared.domain.errors import BadModelFile, InvalidInput, PeerUnavailable
from tests.fakes.file_server import FileServer, serving

CONTENT = b"GGUF" + bytes(range(256)) * 1_000


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(CONTENT) as files:
        yield files


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "models")


@pytest.fixture
def part(folder: ModelFolder) -> Path:
    return folder.part_of("a-model")


def download(server: FileServer, part: Path, folder: ModelFolder) -> None:
    Download(server.url, part, folder, lambda _there, _total: None).run()


def test_a_file_is_fetched_whole(server: FileServer, part: Path, folder: ModelFolder) -> None:
    download(server, part, folder)
    assert part.read_bytes() == CONTENT
    assert [file.name for file in part.parent.iterdir()] == [part.name]


def test_a_broken_download_goes_on_where_it_was(server: FileServer, part: Path, folder: ModelFolder) -> None:
    server.break_after = 100_000
    download(server, part, folder)
    assert part.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_what_came_is_kept_for_the_next_time(server: FileServer, part: Path, folder: ModelFolder) -> None:
    server.break_after = 10_000
    with pytest.raises(PeerUnavailable, match="50000 bytes are kept"):
        download(server, part, folder)
    server.break_after = None
    download(server, part, folder)
    assert part.read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=50000-"


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: FileServer, part: Path, folder: ModelFolder) -> None:
    server.break_after = 10_000
    with pytest.raises(PeerUnavailable):
        download(server, part, folder)
    server.break_after, server.tag, server.content = None, '"two"', b"GGUF" + b"new" * 1_000
    download(server, part, folder)
    assert part.read_bytes() == server.content


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_strong_tag_nothing_is_resumed(
    server: FileServer, part: Path, folder: ModelFolder, tag: str | None
) -> None:
    server.tag, server.break_after = tag, 100_000
    with pytest.raises(PeerUnavailable):
        download(server, part, folder)
    assert set(server.ranges) == {None}


def test_a_kept_part_that_is_longer_than_the_file_is_dropped(
    server: FileServer, part: Path, folder: ModelFolder
) -> None:
    part.write_bytes(CONTENT + b"more")
    part.with_name(f"{part.name}.tag").write_text('"one"')
    download(server, part, folder)
    assert part.read_bytes() == CONTENT


def test_a_length_that_is_not_told_is_bounded_by_the_disk(server: FileServer, part: Path, folder: ModelFolder) -> None:
    server.tells_length = False
    download(server, part, folder)
    assert part.read_bytes() == CONTENT


def test_a_page_instead_of_a_model_is_refused_at_its_first_bytes(
    server: FileServer, part: Path, folder: ModelFolder
) -> None:
    server.content = b"<html>log in first</html>"
    with pytest.raises(BadModelFile, match="it is no GGUF file"):
        download(server, part, folder)


def test_a_refusal_of_the_server_is_told(server: FileServer, part: Path, folder: ModelFolder) -> None:
    server.status = 404
    with pytest.raises(PeerUnavailable, match="the server answered 404"):
        download(server, part, folder)


def test_a_server_that_is_not_there_is_told(part: Path, folder: ModelFolder) -> None:
    with serving(b"") as gone:
        url = gone.url
    with pytest.raises(PeerUnavailable, match="refused"):
        Download(url, part, folder, lambda _there, _total: None).run()


def test_a_local_file_is_copied(part: Path, folder: ModelFolder, tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    source.write_bytes(CONTENT)
    copy_file(source, part, folder)
    assert part.read_bytes() == CONTENT


def test_a_path_that_is_no_file_is_refused(part: Path, folder: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is no file"):
        copy_file(tmp_path, part, folder)


def test_a_local_file_of_another_kind_is_refused(part: Path, folder: ModelFolder) -> None:
    with pytest.raises(BadModelFile, match="it is no GGUF file"):
        copy_file(Path(__file__), part, folder)
