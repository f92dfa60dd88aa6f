"""Connections between processes that can be cut: a TCP proxy per edge, known to the processes by the addresses that
they are given. Needs no rights: what is cut stalls, as on a network that drops everything, and goes on when healed."""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field

HOST = "127.0.0.1"
_CHUNK = 65_536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, with a reset


@dataclass(slots=True)
class _Gate:
    """Open unless anything holds it closed."""

    held_by: list[object] = field(default_factory=list)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.opened.set()

    def close(self, holder: object) -> None:
        self.held_by.append(holder)
        self.opened.clear()

    def release(self, holder: object) -> None:
        self.held_by.remove(holder)
        if not self.held_by:
            self.opened.set()


class Edge:
    """From one process (None: from all that have no edge of their own) to another."""

    def __init__(self, caller: str | None, callee: str, callee_port: int) -> None:
        self.caller, self.callee = caller, callee
        self._callee_port = callee_port
        self._gate = _Gate()
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connections made before wait until then."""
        self._server = await asyncio.start_server(self._serve, sock=self._listener)

    def cut(self, holder: object) -> None:
        self._gate.close(holder)

    def heal(self, holder: object) -> None:
        self._gate.release(holder)

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
        self._listener.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("the server runs this as a task")
        self._connections.add(task)
        try:
            await self._join(reader, writer)
        except asyncio.CancelledError:
            _abort(writer)
        finally:
            self._connections.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._gate.opened.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self._callee_port)
        except OSError:  # the callee is down
            _abort(writer)
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer))
                group.create_task(self._pump(far_reader, writer))
        except* OSError:  # one side broke the connection: so does the proxy
            _abort(far_writer)
            _abort(writer)
        finally:
            far_writer.close()
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._gate.opened.wait()
            writer.write(data)
            await writer.drain()
        await self._gate.opened.wait()
        with contextlib.suppress(OSError):
            writer.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset; what is on its way may be lost, as when a process dies."""
    handle = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
