"""A service as a process of its own, for tests."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parents[3]


@asynccontextmanager
async def started(environ: dict[str, str], *, service: str = "metrics") -> AsyncIterator[asyncio.subprocess.Process]:
    """The process, ended by its id at the end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BUTTERFLY_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"services.{service}", cwd=ROOT, env=inherited | environ, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def logged(process: asyncio.subprocess.Process, event: str) -> dict[str, object]:
    """The first line of that event."""
    assert process.stderr is not None
    async for line in process.stderr:
        fields: dict[str, object] = json.loads(line)
        if fields["event"] == event:
            return fields
    raise AssertionError(f"the process ended without {event}")
