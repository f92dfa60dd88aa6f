"""Ids of tasks: UUIDv7 (RFC 9562), so that ids sort by the time of submission."""

import re
from typing import Final

from shared.domain.ids import TaskId

_TASK_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def new_task_id(unix_ms: int, entropy: bytes) -> TaskId:
    """`entropy`: 10 fresh random bytes, of which 74 bits are used."""
    random = int.from_bytes(entropy, "big")
    value = (unix_ms & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | (random >> 62 & 0xFFF) << 64
    value |= 0b10 << 62 | random & (1 << 62) - 1
    digits = f"{value:032x}"
    return TaskId("-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])))


def is_task_id(text: str) -> bool:
    return _TASK_ID.fullmatch(text) is not None
