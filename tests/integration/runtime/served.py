"""Runs an app under a real uvicorn on a free port, in this process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[str]:
    """The base URL of `app` while it is served; its lifespan runs."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            app, http="httptools", lifespan="on", access_log=False, log_config=None, timeout_graceful_shutdown=1
        )
    )
    running = asyncio.create_task(server._serve(sockets=[listener]))  # `serve` would take over the signals of pytest
    try:
        while not server.started:
            if running.done():
                await running
            await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running
