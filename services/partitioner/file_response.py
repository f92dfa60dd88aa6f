"""Answers with a stage file or a part of it."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from services.partitioner.domain.byte_range import ByteRange, NoRange, parse_range
from shared.llama.cutting import StageFile

_MEDIA_TYPE = "application/octet-stream"


def file_response(file: StageFile, request: Request) -> Response:
    """200 with all, 206 with the one range asked for, 304 when the caller has it, 416 outside the file.

    `If-Range` with another digest than the file's makes a range request start over.
    """
    etag = f'"{file.stage_digest()}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    if is_known(request, etag):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("Range")
    if request.headers.get("If-Range", etag) != etag:
        asked = None
    part = parse_range(asked, file.size_bytes)
    match part:
        case NoRange.UNSATISFIABLE:
            return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{file.size_bytes}"})
        case NoRange.WHOLE:
            return _stream(file, ByteRange(0, file.size_bytes), 200, headers)
        case ByteRange(start, stop):
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
            return _stream(file, part, 206, headers)


def is_known(request: Request, etag: str) -> bool:
    """Whether the caller's `If-None-Match` names this content."""
    known = request.headers.get("If-None-Match", "")
    return known == "*" or etag in [entry.strip() for entry in known.split(",")]


def _stream(file: StageFile, part: ByteRange, status: int, headers: dict[str, str]) -> Response:
    headers["Content-Length"] = str(part.stop - part.start)
    return StreamingResponse(_chunks(file, part), status_code=status, headers=headers, media_type=_MEDIA_TYPE)


async def _chunks(file: StageFile, part: ByteRange) -> AsyncIterator[bytes]:
    """Read in a thread, chunk by chunk: the loop stays alive, and a slow reader holds one chunk in memory."""
    chunks = file.read(part.start, part.stop)
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk
