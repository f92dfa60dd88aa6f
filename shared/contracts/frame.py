"""Frames on a link: the unit that travels from stage to stage.

    magic "BFL1" | u32 header length | u32 payload length | header (compact JSON) | payload

All integers little-endian. The payload is raw little-endian float32 `[n, n_embd]` (hidden states), or empty.
Chunk boundaries of the HTTP body mean nothing; frames do. Lengths are checked against the limits before anything
is allocated. float16 is no choice: hidden states overflow it.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.domain.errors import ProtocolViolation
from shared.domain.hidden import HiddenRows
from shared.domain.ids import Epoch, TaskId

MAGIC: Final = b"BFL1"
_PREFIX: Final = struct.Struct("<4sII")
MAX_HEADER_BYTES: Final = 256 * 1024
MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024
MAX_ROWS: Final = 512
MAX_STAGES: Final = 1 << 12
PROBE_NUMBERS: Final = 1 << 48
"""Too many to guess, few enough for every JSON reader."""
_HAS_UPPER_SEVEN: Final = bytes(byte & 0x7F == 0x7F for byte in range(256))
"""By the top byte of a float32: whether the upper seven of its eight exponent bits are set."""
_HAS_LAST: Final = bytes(byte >= 0x80 for byte in range(256))
"""By the byte after that: whether the last one is."""
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


class FrameKind(StrEnum):
    DECODE = "decode"
    """One row of each of several sequences."""
    PREFILL = "prefill"
    """Consecutive rows of one sequence; `final` marks the last chunk, whose last row yields a token."""
    RECALL = "recall"
    """In place of a chunk whose rows the seat has from an earlier epoch, and a stage after it has not. One row, the
    first; how many follow is what a chunk there would have."""
    TOKENS = "tokens"
    """Last stage to stage 0: the sampled tokens of a batch, or the acknowledgement of a non-final chunk. That may come
    from an earlier stage, where those after it have its rows already: they hand it on."""
    PROBE = "probe"
    """Asks for an answer, `final` is one: times the way there and back. `stage` tells them apart, below
    `PROBE_NUMBERS`. No session's."""
    KEEP_ALIVE = "keep_alive"
    END = "end"
    """The sender closes this link on purpose."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row's place: the position of its token in the sequence of (task, epoch)."""

    task_id: TaskId
    epoch: Epoch
    position: int
    token_id: int | None = None
    """In TOKENS frames: the token that now stands at `position`; None when the sequence ended or none is due."""


@dataclass(frozen=True, slots=True)
class Frame:
    kind: FrameKind
    lane: int = 0
    stage: int = 0
    """The stage that shall take this frame."""
    rows: tuple[Row, ...] = ()
    """DECODE: in no particular order, one per sequence. PREFILL, RECALL: exactly one, the first row's place."""
    final: bool = False
    hidden: HiddenRows | None = None
    """None in frames without payload."""


def encode_frame(frame: Frame) -> bytes:
    payload = b"" if frame.hidden is None else frame.hidden.data
    header = {
        "k": frame.kind.value,
        "l": frame.lane,
        "s": frame.stage,
        "r": [[row.task_id, row.epoch, row.position, row.token_id] for row in frame.rows],
        "f": frame.final,
        "w": 0 if frame.hidden is None else frame.hidden.width,
        "c": zlib.crc32(payload),
    }
    head = _ENCODER.encode(header).encode()
    return b"".join((_PREFIX.pack(MAGIC, len(head), len(payload)), head, payload))


def _decode_row(raw: object) -> Row:
    match raw:
        case [str() as task_id, int() as epoch, int() as position, (int() | None) as token_id] if (
            len(task_id) <= 64
            and not isinstance(epoch, bool)
            and 0 <= epoch < 2**53
            and not isinstance(position, bool)
            and 0 <= position < 2**31
            and not isinstance(token_id, bool)
            and (token_id is None or 0 <= token_id < 2**31)
        ):
            return Row(TaskId(task_id), Epoch(epoch), position, token_id)
    raise ProtocolViolation("frame row is not [task_id, epoch, position, token_id or null]")


def _int_field(header: dict[str, object], key: str, bound: int) -> int:
    value = header.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < bound:
        raise ProtocolViolation(f"frame header field {key!r} is not an integer in [0, {bound})")
    return value


def decode_frame(head: bytes, payload: bytes) -> Frame:
    """Parse what `encode_frame` wrote. Raises `ProtocolViolation` for anything else, NaN and Infinity included."""
    try:
        header = json.loads(head)
    except (ValueError, RecursionError):
        raise ProtocolViolation("frame header is not JSON") from None
    if not isinstance(header, dict) or set(header) != {"k", "l", "s", "r", "f", "w", "c"}:
        raise ProtocolViolation("frame header has not exactly the fields k, l, s, r, f, w, c")
    try:
        kind = FrameKind(header["k"])
    except ValueError:
        raise ProtocolViolation("unknown frame kind") from None
    raw_rows = header["r"]
    if not isinstance(raw_rows, list) or len(raw_rows) > MAX_ROWS:
        raise ProtocolViolation(f"frame has more than {MAX_ROWS} rows, or none as a list")
    width = _int_field(header, "w", 1 << 20)
    if _int_field(header, "c", 1 << 32) != zlib.crc32(payload):
        raise ProtocolViolation("frame checksum does not match")
    if not isinstance(header["f"], bool):
        raise ProtocolViolation("frame header field 'f' is not a boolean")
    return Frame(
        kind=kind,
        lane=_int_field(header, "l", 1 << 10),
        stage=_int_field(header, "s", PROBE_NUMBERS if kind is FrameKind.PROBE else MAX_STAGES),
        rows=tuple(_decode_row(raw) for raw in raw_rows),
        final=header["f"],
        hidden=_decode_hidden(payload, width),
    )


def _decode_hidden(payload: bytes, width: int) -> HiddenRows | None:
    if width == 0:
        if payload:
            raise ProtocolViolation("frame payload without a width")
        return None
    if len(payload) % (4 * width) or not payload:
        raise ProtocolViolation(f"frame payload of {len(payload)} bytes is not rows of {width} float32")
    hidden = HiddenRows(payload, width)
    if len(hidden) > MAX_ROWS:
        raise ProtocolViolation(f"frame payload has {len(hidden)} rows, more than {MAX_ROWS}")
    if not _is_finite(payload):
        raise ProtocolViolation("frame payload holds NaN or Infinity")
    return hidden


def _is_finite(payload: bytes) -> bool:
    """Of float32: all bits of the exponent are set in infinities and NaN, and in nothing else."""
    tops = payload[3::4]
    if b"\x7f" not in tops and b"\xff" not in tops:  # as ever: no hidden state comes near 1e38
        return True
    in_tops = int.from_bytes(tops.translate(_HAS_UPPER_SEVEN))
    return not in_tops & int.from_bytes(payload[2::4].translate(_HAS_LAST))


class FrameReader:
    """Cuts a byte stream into frames. One per link; not shared."""

    def __init__(self, *, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._buffer = bytearray()
        self.max_payload_bytes = max_payload_bytes
        """May change between calls: it holds for frames that are not complete."""

    def feed(self, chunk: bytes) -> list[Frame]:
        """Frames completed by `chunk`, in order. Raises `ProtocolViolation`; the link must be closed then."""
        self._buffer += chunk
        frames: list[Frame] = []
        offset = 0
        while len(self._buffer) - offset >= _PREFIX.size:
            magic, head_bytes, payload_bytes = _PREFIX.unpack_from(self._buffer, offset)
            if magic != MAGIC:
                raise ProtocolViolation("bytes on the link are not a frame")
            if head_bytes > MAX_HEADER_BYTES or payload_bytes > self.max_payload_bytes:
                raise ProtocolViolation(f"frame of {head_bytes}+{payload_bytes} bytes exceeds the limit")
            start = offset + _PREFIX.size
            end = start + head_bytes + payload_bytes
            if len(self._buffer) < end:
                break
            head = bytes(self._buffer[start : start + head_bytes])
            payload = bytes(self._buffer[start + head_bytes : end])
            frames.append(decode_frame(head, payload))
            offset = end
        del self._buffer[:offset]
        return frames
