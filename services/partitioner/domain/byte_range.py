"""The header `Range` of a request for a file."""

import re
from dataclasses import dataclass
from enum import Enum

_ONE_RANGE = re.compile(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes [start, stop)."""

    start: int
    stop: int


class NoRange(Enum):
    WHOLE = "whole"
    """Not asked for, or not in a form we serve (RFC 9110 lets a server answer with all then)."""
    UNSATISFIABLE = "unsatisfiable"
    """Asked for bytes that the file does not have."""


def parse_range(header: str | None, size_bytes: int) -> ByteRange | NoRange:
    """What part of a file of `size_bytes` is meant by `bytes=a-b`, `bytes=a-` or `bytes=-n`."""
    found = _ONE_RANGE.fullmatch(header or "")
    if found is None or not (found[1] or found[2]):
        return NoRange.WHOLE
    if not found[1]:
        start, stop = max(0, size_bytes - int(found[2])), size_bytes
    else:
        start = int(found[1])
        stop = min(int(found[2]) + 1, size_bytes) if found[2] else size_bytes
        if found[2] and int(found[2]) < start:
            return NoRange.WHOLE
    return ByteRange(start, stop) if start < stop else NoRange.UNSATISFIABLE
