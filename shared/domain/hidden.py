"""Hidden states between engines, as bytes: who passes them on or counts them computes nothing with them."""

from collections.abc import Iterator
from dataclasses import dataclass

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class HiddenRows:
    """float32 [rows, width], little-endian. Iterates over the bytes of each row."""

    data: bytes
    """A whole number of rows."""
    width: int
    """n_embd; above 0."""

    def __len__(self) -> int:
        return len(self.data) // self.row_bytes

    def __iter__(self) -> Iterator[bytes]:
        step = self.row_bytes
        return (self.data[at : at + step] for at in range(0, len(self.data), step))

    @property
    def row_bytes(self) -> int:
        return FLOAT_BYTES * self.width
