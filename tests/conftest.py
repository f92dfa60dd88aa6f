"""Fixtures of the whole suite."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("butterfly", deadline=None, print_blob=True)
settings.load_profile("butterfly")

DEMO_MODEL = Path(__file__).parent.parent / ".butterfly" / "models" / "smollm2-135m.gguf"


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: 30 layers, width 576."""
    if not DEMO_MODEL.exists():
        pytest.fail(f"{DEMO_MODEL} is missing: `make model` fetches it (make test does so by itself)")
    return DEMO_MODEL
