"""Reads the JSON body of a request strictly: UTF-8, finite numbers, real text, bounded depth."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request

from shared.domain.errors import InvalidInput, InvalidJson, UnsupportedMediaType

MAX_DEPTH: Final = 64


async def read_json_object(request: Request) -> dict[str, object]:
    """The request's body. Raises `UnsupportedMediaType`, `InvalidJson`, `BodyTooLarge`, `InvalidInput` (with path)."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaType(f"the body should be application/json, not {media_type[:100]}")
    return parse_json_object(await request.body())


def parse_json_object(content: bytes) -> dict[str, object]:
    """What `read_json_object` does with the bytes."""
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise InvalidJson("the body is not valid JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise InvalidJson("the body should be a JSON object")
    _check(value)
    return value


def payload_hash(route: str, body: Mapping[str, object]) -> str:
    """Equal for equal requests, whatever the order of their keys."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(route.encode() + b"\n" + canonical, digest_size=16).hexdigest()


def _check(root: object) -> None:
    """Walks without recursion, since depth is what it bounds."""
    waiting: list[tuple[object, tuple[str | int, ...]]] = [(root, ())]
    while waiting:
        value, path = waiting.pop()
        if len(path) > MAX_DEPTH:
            raise InvalidJson(f"the body is nested deeper than {MAX_DEPTH} levels")
        match value:
            case dict():
                waiting.extend((child, (*path, _encodable(key, path))) for key, child in value.items())
            case list():
                waiting.extend((child, (*path, index)) for index, child in enumerate(value))
            case float() if not math.isfinite(value):
                raise InvalidInput("this number should be finite", param=_dotted(path))
            case str():
                _encodable(value, path)
            case _:
                pass  # the other numbers, true, false, null


def _encodable(text: str, path: tuple[str | int, ...]) -> str:
    """JSON escapes can write half of a surrogate pair, which is no text."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput("this text holds half of a surrogate pair", param=_dotted(path) or None) from None
    return text


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path)
