"""The one byte form of everything that is signed.

`butterfly/<kind>/v1`, a line feed, then JSON with sorted keys, no spaces and ASCII only; values are strings, integers
and lists or objects of them. Whoever reads a signed text encodes what was read again and compares: of each content
there is one text only.
"""

import json
from collections.abc import Mapping
from typing import Any

from shared.domain.errors import InvalidInput

MAX_SIGNED_BYTES = 1 << 20
_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def encode(kind: str, body: Mapping[str, Any]) -> bytes:
    """Raises `TypeError` for values that have no canonical form."""
    _check(body)
    return f"butterfly/{kind}/v1\n{_JSON.encode(body)}".encode("ascii")


def fields_of(statement: Any) -> dict[str, Any]:
    """Of a dataclass, as `encode` takes them: nothing is copied. Any: what is signed is of many classes."""
    return {name: getattr(statement, name) for name in statement.__dataclass_fields__}


def decode(kind: str, data: bytes) -> dict[str, Any]:
    """What `data` says. Raises `InvalidInput` unless it is exactly what `encode` makes of it."""
    prefix = f"butterfly/{kind}/v1\n".encode("ascii")
    if len(data) > MAX_SIGNED_BYTES or not data.startswith(prefix):
        raise InvalidInput(f"not a signed text of kind {kind}")
    body: object = None
    try:
        body = json.loads(data[len(prefix) :])
        is_canonical = isinstance(body, dict) and encode(kind, body) == data
    except (ValueError, TypeError, RecursionError):
        is_canonical = False
    if not is_canonical or not isinstance(body, dict):
        raise InvalidInput(f"a signed text of kind {kind} that is not in canonical form")
    return body


def _check(value: object) -> None:
    if type(value) is str or type(value) is int:  # nearly all of them
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError("keys are strings")
            _check(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check(item)
    elif isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{type(value).__name__} has no canonical form")
