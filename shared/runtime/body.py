"""Bodies of requests that last as long as what they carry."""

from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request


async def until_broken(request: Request) -> AsyncIterator[bytes]:
    """The body's chunks; a connection that breaks ends them."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        return
