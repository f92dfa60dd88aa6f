"""A running coordinator for each test."""

from collections.abc import AsyncIterator

import pytest

from tests.unit.coordinator.harness import Coordinator


@pytest.fixture
async def coordinator() -> AsyncIterator[Coordinator]:
    """With the nodes n1, n2, n3."""
    running = await Coordinator().start()
    yield running
    await running.stop()
