"""The bytes that each token stands for, kept as the one block in which they arrive."""

import struct
from array import array

from shared.domain.errors import ProtocolViolation

_LENGTH = struct.Struct("<H")


class TokenTable:
    """Read-only; looks a token up without having made an object for every token of the vocabulary."""

    def __init__(self, block: bytes) -> None:
        """`block`: u32 count, then per token u16 length and that many bytes, all little-endian.

        Raises `ProtocolViolation` when the block is cut short or longer than its count says.
        """
        if len(block) < 4:
            raise ProtocolViolation("the token table has no count")
        (count,) = struct.unpack_from("<I", block)
        if count * _LENGTH.size > len(block):
            raise ProtocolViolation(f"the token table is too short for {count} tokens")
        starts = array("Q")
        place = 4
        for _ in range(count):
            starts.append(place)
            if place + _LENGTH.size > len(block):
                raise ProtocolViolation(f"the token table ends before token {len(starts) - 1} of {count}")
            place += _LENGTH.size + _LENGTH.unpack_from(block, place)[0]
        if place != len(block):
            raise ProtocolViolation(f"the token table has {len(block)} bytes where its tokens need {place}")
        self._block = block
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def bytes_of(self, token_id: int) -> bytes:
        """Raises `IndexError` for ids outside the vocabulary."""
        if token_id < 0:
            raise IndexError(token_id)
        start = self._starts[token_id]
        (length,) = _LENGTH.unpack_from(self._block, start)
        return self._block[start + _LENGTH.size : start + _LENGTH.size + length]
