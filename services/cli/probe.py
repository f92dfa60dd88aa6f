"""Small questions over plain sockets: is a port free, is a service ready. No connection outlives its question."""

import asyncio
import errno
import socket

from shared.domain.errors import InvalidInput

_PROBE_LIMIT_S = 2.0


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there. Raises `InvalidInput` when this machine cannot listen there at all."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = found[0]
        with socket.socket(family, kind, proto) as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise InvalidInput(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return True


def outward_address(towards: str = "192.0.2.1") -> str:
    """The address of this machine that faces `towards`, by default the rest of the world; loopback without a network.

    Nothing is sent: the kernel only chooses a route (192.0.2.1 is nobody's, RFC 5737).
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(towards, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as chooser:
            chooser.connect(address)
            return str(chooser.getsockname()[0])
    except OSError:
        return "127.0.0.1"


async def answers_ready(host: str, port: int) -> bool:
    """Whether `GET /readyz` there is answered with 200."""
    request = f"GET /readyz HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
    return (await _ask(host, port, request.encode())).startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))


async def redis_answers(host: str, port: int) -> bool:
    """Whether a Redis server there takes commands (while it loads its file it answers, but refuses)."""
    return (await _ask(host, port, b"PING\r\n")).startswith(b"+PONG")


async def _ask(host: str, port: int, request: bytes) -> bytes:
    """The first line of the answer, or nothing."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_PROBE_LIMIT_S):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(request)
            return await reader.readline()
    except (OSError, TimeoutError, ValueError):
        return b""
    finally:
        if writer is not None:
            writer.close()
