import json
import struct
import zlib
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.frame import MAX_ROWS, Frame, FrameKind, FrameReader, Row, encode_frame
from shared.domain.errors import ProtocolViolation
from shared.domain.hidden import HiddenRows
from shared.domain.ids import Epoch, TaskId

rows = st.builds(
    Row,
    task_id=st.text(min_size=1, max_size=20).map(TaskId),
    epoch=st.integers(0, 2**40).map(Epoch),
    position=st.integers(0, 2**20),
    token_id=st.none() | st.integers(0, 2**20),
)


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    width = draw(st.integers(1, 5))
    count = draw(st.integers(0, 4))
    hidden = None
    if count:
        values = draw(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=count * width))
        hidden = HiddenRows(array("f", values[: count * width]).tobytes(), width)
    return Frame(
        kind=draw(st.sampled_from(FrameKind)),
        lane=draw(st.integers(0, 5)),
        stage=draw(st.integers(0, 50)),
        rows=tuple(draw(st.lists(rows, max_size=4))),
        final=draw(st.booleans()),
        hidden=hidden,
    )


@given(st.lists(frames(), max_size=4), st.data())
def test_frames_come_out_as_they_went_in_wherever_the_stream_is_cut(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader = FrameReader()
    got = [frame for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) for frame in reader.feed(stream[a:b])]
    assert got == sent


def raw(header: object, payload: bytes = b"", *, magic: bytes = b"BFL1") -> bytes:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<4sII", magic, len(head), len(payload)) + head + payload


def header(payload: bytes = b"", **changes: object) -> dict[str, object]:
    fields: dict[str, object] = {"k": "decode", "l": 0, "s": 1, "r": [], "f": False, "w": 0}
    return fields | {"c": zlib.crc32(payload)} | changes


NAN_ROW = np.array([1.0, np.nan], dtype=np.float32).tobytes()
GOOD_ROW = np.array([1.0, 2.0], dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (raw(header(), magic=b"HTTP"), "not a frame"),
        (struct.pack("<4sII", b"BFL1", 2**31, 0), "exceeds the limit"),
        (struct.pack("<4sII", b"BFL1", 10, 2**31), "exceeds the limit"),
        (raw(b"{"), "not JSON"),
        (raw(b"[" * 100_000), "not JSON"),
        (raw([1]), "exactly the fields"),
        (raw(header() | {"z": 1}), "exactly the fields"),
        (raw(header(k="gossip")), "unknown frame kind"),
        (raw(header(l=-1)), "field 'l'"),
        (raw(header(s=True)), "field 's'"),
        (raw(header(f=1)), "field 'f'"),
        (raw(header(r="rows")), "rows"),
        (raw(header(r=[["t", 1, 2, None]] * (MAX_ROWS + 1))), "rows"),
        (raw(header(r=[["t", 1, -2, None]])), "frame row"),
        (raw(header(r=[["t", 1]])), "frame row"),
        (raw(header(GOOD_ROW, w=2), NAN_ROW), "checksum"),
        (raw(header(NAN_ROW, w=2), NAN_ROW), "NaN"),
        (raw(header(GOOD_ROW, w=3), GOOD_ROW), "not rows of 3"),
        (raw(header(GOOD_ROW), GOOD_ROW), "without a width"),
        (raw(header(b"", w=2)), "not rows of 2"),
    ],
)
def test_what_is_not_a_frame_is_refused_with_the_reason(stream: bytes, message: str) -> None:
    with pytest.raises(ProtocolViolation, match=message):
        FrameReader().feed(stream)


def test_a_payload_over_the_link_s_own_limit_is_refused_before_it_arrives() -> None:
    with pytest.raises(ProtocolViolation, match="exceeds the limit"):
        FrameReader(max_payload_bytes=100).feed(struct.pack("<4sII", b"BFL1", 10, 101))


floats = st.binary(min_size=4, max_size=4) | st.builds(
    lambda low, third, top: bytes((*low, third, top)),
    st.binary(min_size=2, max_size=2),
    st.sampled_from([0x00, 0x7F, 0x80, 0xFF]),
    st.sampled_from([0x7E, 0x7F, 0xFE, 0xFF]),
)


@given(st.lists(floats, min_size=1, max_size=6))
def test_no_infinity_and_no_nan_passes_and_every_other_float_does(values: list[bytes]) -> None:
    payload = b"".join(values)
    stream = raw(header(payload, w=len(values)), payload)
    if np.isfinite(np.frombuffer(payload, "<f4")).all():
        (frame,) = FrameReader().feed(stream)
        assert frame.hidden == HiddenRows(payload, len(values))
    else:
        with pytest.raises(ProtocolViolation, match="NaN or Infinity"):
            FrameReader().feed(stream)
