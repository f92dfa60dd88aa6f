from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.tiny_models import write_tiny_model
from tests.integration.engine.stages import Chain, write_stages


@pytest.fixture(scope="session")
def stage_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="session")
def tiny_model(stage_folder: Path) -> Path:
    return write_tiny_model(stage_folder / "tiny.gguf")


@pytest.fixture(scope="module")
def tiny_whole(tiny_model: Path) -> Iterator[Chain]:
    """The tiny model as one stage, 16 empty slots of 700 rows. Tests leave the slots empty."""
    chain = Chain.open([tiny_model], n_slots=16, ctx=700)
    yield chain
    chain.close()


@pytest.fixture(scope="module")
def tiny_chain(tiny_model: Path, stage_folder: Path) -> Iterator[Chain]:
    """The tiny model in three stages, else as `tiny_whole`."""
    chain = Chain.open(write_stages(tiny_model, (0, 2, 3, 6), stage_folder), n_slots=16, ctx=700)
    yield chain
    chain.close()


@pytest.fixture(autouse=True)
def empty_slots(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"tiny_whole", "tiny_chain"} & set(request.fixturenames):
        chain = request.getfixturevalue(name)
        for slot in range(16):
            chain.drop(slot)
