"""A service as a process of its own: `python -m services.metrics`, the one that needs nobody else."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import textwrap

import httpx

from tests.integration.runtime.own_process import ROOT, logged, started

PORT_ZERO = {"BUTTERFLY_METRICS__BIND_ADDRESS": "127.0.0.1:0"}


async def stderr_and_code(process: asyncio.subprocess.Process) -> tuple[str, int | None]:
    _, stderr = await process.communicate()
    return stderr.decode(), process.returncode


async def test_sigterm_ends_open_streams_with_a_last_word_and_the_process_with_code_0() -> None:
    async with started(PORT_ZERO) as process:
        port = (await logged(process, "listening"))["port"]
        async with (
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
            client.stream("GET", "/stream") as stream,
        ):
            lines = stream.aiter_lines()
            assert await anext(lines) == ": connected"
            process.send_signal(signal.SIGTERM)
            rest = [line async for line in lines]
        assert "event: bye" in rest
        stderr, code = await stderr_and_code(process)
        assert code == 0
        assert [json.loads(line)["event"] for line in stderr.splitlines()][-1] == "stopped"


async def test_a_request_on_its_way_to_a_process_that_stops_is_answered_as_the_last_of_its_connection() -> None:
    async with started(PORT_ZERO) as process:
        port = str((await logged(process, "listening"))["port"])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        first = await reader.readuntil(b"}")
        process.send_signal(signal.SIGTERM)
        await logged(process, "draining")
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        last = await reader.read()
        writer.close()
        assert b"connection: close" not in first
        assert last.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in last
        assert await process.wait() == 0


async def test_a_connection_without_a_whole_request_head_is_closed() -> None:
    async with started(PORT_ZERO | {"BUTTERFLY_API__REQUEST_TIMEOUT_SECS": "0.2"}) as process:
        port = str((await logged(process, "listening"))["port"])
        silent, silent_writer = await asyncio.open_connection("127.0.0.1", port)
        slow, slow_writer = await asyncio.open_connection("127.0.0.1", port)
        slow_writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HT")
        assert await silent.read() == b""
        assert (await slow.read()).count(b"HTTP/1.1") == 1
        silent_writer.close()
        slow_writer.close()


async def test_a_taken_port_is_named_with_its_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with started({"BUTTERFLY_METRICS__BIND_ADDRESS": f"127.0.0.1:{port}"}) as process:
            stderr, code = await stderr_and_code(process)
    assert code == 2
    assert f"cannot listen on port {port} of 127.0.0.1 (Address already in use)" in stderr
    assert "metrics.bind_address" in stderr


async def test_a_wrong_configuration_stops_the_process_before_anything_starts() -> None:
    async with started({"BUTTERFLY_METRIC__BIND_ADDRESS": "127.0.0.1:0"}) as process:
        stderr, code = await stderr_and_code(process)
    assert code == 2
    assert stderr.startswith("butterfly metrics: unknown environment variable BUTTERFLY_METRIC__BIND_ADDRESS")


async def test_a_service_without_token_refuses_to_face_the_network() -> None:
    async with started({"BUTTERFLY_METRICS__BIND_ADDRESS": "0.0.0.0:0"}) as process:
        stderr, code = await stderr_and_code(process)
    assert code == 2
    assert "security.service_token" in stderr


async def test_a_service_dies_with_its_parent() -> None:
    """A parent that is killed outright cannot stop its child: the kernel or the child itself must."""
    parent_code = textwrap.dedent("""
        import os, subprocess, sys
        environ = dict(os.environ, BUTTERFLY_PARENT_PID=str(os.getpid()))
        child = subprocess.Popen([sys.executable, "-m", "services.metrics"], env=environ)
        print(child.pid, flush=True)
        child.wait()
    """)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BUTTERFLY_")}
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        parent_code,
        cwd=ROOT,
        env=inherited | PORT_ZERO,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    child_pid = int(await parent.stdout.readline())
    try:
        await logged(parent, "listening")
        parent.kill()
        # The child holds the other end of this pipe: it closes when the child is gone.
        assert parent.stderr is not None
        last_words = await parent.stderr.read()
        assert b'"event": "stopped"' in last_words
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child_pid, signal.SIGKILL)
        await parent.communicate()  # reads both pipes to their end, which closes them
