from pathlib import Path

import pytest

from tests.fakes.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers; workers with synthetic engines download its stages and run their own function instead."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
