"""What is said of a store that cannot be reached."""

import asyncio

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.domain.errors import RegistryUnavailable
from shared.registry.connection import reaching_registry


def test_a_connection_that_broke_before_the_write_means_unavailable() -> None:
    async def write_to_closed() -> None:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.transport.abort()
        await asyncio.sleep(0)  # the loop closes it
        server.close()
        with reaching_registry():
            writer.writelines([b"PING"])  # as redis-py writes

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, pytest.raises(RegistryUnavailable):
        runner.run(write_to_closed())


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), ConnectionResetError(), TimeoutError()])
def test_what_goes_wrong_on_the_way_means_unavailable(error: Exception) -> None:
    with pytest.raises(RegistryUnavailable), reaching_registry():
        raise error


def test_faults_of_our_own_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="own fault"), reaching_registry():
        raise RuntimeError("own fault")
