"""What a pool makes of peers that break connections."""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvloop

from shared.resilience.pool import ConnectionPool

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset
LIMIT = httpx.Timeout(5.0)


@pytest.fixture
def resetting_url() -> Iterator[str]:
    """A peer that takes connections and resets them at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed
                    return
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_connection_that_is_reset_while_it_is_made_is_a_transport_error(resetting_url: str) -> None:
    async def connect(pool: ConnectionPool) -> BaseException | None:
        async with pool.lease() as client:
            try:
                async with client.stream("GET", "/", content=None, params=None, headers={}, timeout=LIMIT):
                    pass
            except Exception as error:  # noqa: BLE001  which kinds there are is what is tested
                return error
        return None

    async def connect_often() -> list[BaseException | None]:
        pool = ConnectionPool(resetting_url, max_connections=50)
        # Many at once keep the loop busy, so that for some the reset is there before it looks at the connection.
        found = [error for _ in range(10) for error in await asyncio.gather(*(connect(pool) for _ in range(50)))]
        await pool.aclose()
        return found

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # what the services run on
        found = runner.run(connect_often())
    assert len(found) == 500
    assert {type(error) for error in found if not isinstance(error, httpx.TransportError)} == set()


async def test_what_waited_for_a_connection_when_the_pool_was_closed_leaves_none_open() -> None:
    ends: list[asyncio.Event] = []
    has_begun = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(ended := asyncio.Event())
        await reader.readuntil(b"\r\n\r\n")
        if len(ends) > 1:  # the first is not answered
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        has_begun.set()
        await reader.read()
        writer.close()
        ended.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        pool = ConnectionPool(f"http://127.0.0.1:{port}", max_connections=1)

        async def call() -> int | None:
            async with pool.lease() as client:
                try:
                    async with client.stream("GET", "/", content=None, params=None, headers={}, timeout=LIMIT) as got:
                        return got.status_code
                except httpx.TransportError:
                    return None

        calls = [asyncio.ensure_future(call()) for _ in range(2)]
        await has_begun.wait()
        await pool.aclose()
        assert await asyncio.gather(*calls) == [None, None]
        async with asyncio.timeout(5.0):
            await asyncio.gather(*(ended.wait() for ended in ends))
