"""Connections over an edge, and what a cut does to them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.chaos.edges import HOST, Edge


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    """To a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    edge = Edge("client", "server", server.sockets[0].getsockname()[1])
    await edge.open()
    yield edge
    await edge.aclose()
    server.close()


async def test_bytes_of_a_cut_edge_come_when_it_is_healed(edge: Edge) -> None:
    reader, writer = await asyncio.open_connection(HOST, edge.port)
    writer.write(b"one")
    assert await reader.read(100) == b"one"
    edge.cut("nemesis")
    edge.cut("another")
    writer.write(b"two")
    coming = asyncio.ensure_future(reader.read(100))
    edge.heal("nemesis")
    done, _ = await asyncio.wait({coming}, timeout=0.1)
    assert not done
    edge.heal("another")
    assert await coming == b"two"
    writer.close()


async def test_a_callee_that_is_down_breaks_the_connection() -> None:
    edge = Edge("client", "server", 1)
    await edge.open()
    reader, writer = await asyncio.open_connection(HOST, edge.port)
    with pytest.raises(ConnectionResetError):
        await reader.read(100)
    writer.close()
    await edge.aclose()


async def test_the_end_of_one_side_reaches_the_other(edge: Edge) -> None:
    reader, writer = await asyncio.open_connection(HOST, edge.port)
    writer.write(b"last")
    writer.write_eof()
    assert await reader.read() == b"last"
    writer.close()
