"""Fixtures of the contract suites."""

from collections.abc import Iterator

import pytest

from tests.fakes.valkey import ValkeyServer, running_valkey


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    with running_valkey() as server:
        yield server
