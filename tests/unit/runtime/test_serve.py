import asyncio
import socket

import pytest

from shared.runtime.config import ConfigError
from shared.runtime.serve import listen


async def test_small_answers_leave_at_once() -> None:
    """Nagle's algorithm and delayed acknowledgements together would cost 40 ms per call."""
    accepted = asyncio.get_running_loop().create_future()

    async def on_connection(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer)

    listener = listen("127.0.0.1:0", key="api.bind_address")
    server = await asyncio.start_server(on_connection, sock=listener)
    _, client = await asyncio.open_connection(*listener.getsockname())
    writer = await accepted
    assert writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    client.close()
    writer.close()
    server.close()
    await server.wait_closed()


def test_a_taken_port_is_named_with_its_key() -> None:
    with listen("127.0.0.1:0", key="api.bind_address") as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 .*set api.bind_address to another"):
            listen(f"127.0.0.1:{port}", key="api.bind_address")
