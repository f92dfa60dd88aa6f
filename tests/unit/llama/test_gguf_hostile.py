"""Files that are damaged, foreign, or made to hurt."""

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.errors import BadModelFile
from shared.llama.gguf import read_gguf
from tests.fakes.gguf_files import ARRAY, STRING, Gguf, Tensor, array, f32, string, strings, text, uint32, uint32s


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


SOUND = Gguf(
    keys=[string("general.architecture", "llama"), strings("a.names", ["x", "yz"]), uint32s("a.numbers", [1, 2, 3])],
    tensors=[f32("first", 4, 2), f32("second", 5)],
)
HUGE = 1 << 60

CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "a zip file": (b"PK\x03\x04" + bytes(100), "no GGUF file"),
    "an old ggml file": (b"tjgg" + bytes(100), "no GGUF file"),
    "version 1": (Gguf(version=1).to_bytes(), "GGUF version 1"),
    "version 9": (Gguf(version=9).to_bytes(), "GGUF version 9"),
    "big-endian": (Gguf(version=0x03000000).to_bytes(), "big-endian"),
    "too many tensors": (Gguf(num_tensors=HUGE).to_bytes(), "claims 1152921504606846976 tensors"),
    "too many keys": (Gguf(num_keys=HUGE).to_bytes(), "claims 1152921504606846976 keys"),
    "more keys than there are": (Gguf(num_keys=5).to_bytes(), "key name has 0 bytes"),
    "a key name without end": (Gguf(num_keys=1, keys=[struct.pack("<Q", HUGE)]).to_bytes(), "key name has"),
    "an empty key name": (Gguf(keys=[uint32("", 1)]).to_bytes(), "key name has 0 bytes"),
    "a key name that is not UTF-8": (Gguf(keys=[text(b"\xff\xfe") + struct.pack("<II", 4, 1)]).to_bytes(), "UTF-8"),
    "a key twice": (Gguf(keys=[uint32("a", 1), uint32("a", 1)]).to_bytes(), "a appears twice"),
    "an unknown value type": (Gguf(keys=[text("a") + struct.pack("<I", 77)]).to_bytes(), "unknown type 77"),
    "an array of arrays": (Gguf(keys=[array("a", ARRAY, [], 1)]).to_bytes(), "array of arrays"),
    "an array without end": (Gguf(keys=[array("a", 4, [], HUGE)]).to_bytes(), "more than the file holds"),
    "strings without end": (Gguf(keys=[array("a", STRING, [], HUGE)]).to_bytes(), "more than can be read"),
    "a string without end": (
        Gguf(keys=[text("a") + struct.pack("<IQ", STRING, HUGE)], tensors=[f32("t", 8)]).to_bytes(),
        "past the end",
    ),
    "an item without end": (
        Gguf(keys=[array("a", STRING, [struct.pack("<Q", (1 << 64) - 1)])], tensors=[f32("t", 8)]).to_bytes(),
        "past the end",
    ),
    "an alignment of 3": (Gguf(keys=[uint32("general.alignment", 3)]).to_bytes(), "power of two"),
    "an alignment of 0": (Gguf(keys=[uint32("general.alignment", 0)]).to_bytes(), "power of two"),
    "an alignment of 2 GiB": (Gguf(keys=[uint32("general.alignment", 1 << 31)]).to_bytes(), "power of two"),
    "an alignment in words": (Gguf(keys=[string("general.alignment", "32")]).to_bytes(), "32-bit number"),
    "a tensor name too long for ggml": (Gguf(tensors=[f32("n" * 64, 4)]).to_bytes(), "tensor name has 64 bytes"),
    "a tensor twice": (Gguf(tensors=[f32("t", 8), f32("t", 8)]).to_bytes(), "t appears twice"),
    "no dimension": (Gguf(tensors=[Tensor("t", (), bytes(4))]).to_bytes(), "0 dimensions"),
    "five dimensions": (Gguf(tensors=[f32("t", 1, 1, 1, 1, 1)]).to_bytes(), "5 dimensions"),
    "a dimension of 0": (Gguf(tensors=[Tensor("t", (4, 0), b"")]).to_bytes(), "impossible shape"),
    "a product that overflows": (Gguf(tensors=[Tensor("t", (1 << 40, 1 << 40), b"")]).to_bytes(), "impossible shape"),
    "an unknown tensor type": (Gguf(tensors=[Tensor("t", (4,), bytes(16), code=99)]).to_bytes(), "unknown type 99"),
    "rows that do not fill blocks": (Gguf(tensors=[Tensor("t", (33,), bytes(64), code=2)]).to_bytes(), "32 at a time"),
    "overlapping tensors": (
        Gguf(tensors=[f32("t", 16), Tensor("u", (8,), bytes(32), offset=32)]).to_bytes(),
        "u overlaps",
    ),
    "a gap between tensors": (
        Gguf(tensors=[f32("t", 8), Tensor("u", (8,), bytes(64), offset=64)]).to_bytes(),
        "u leaves a gap",
    ),
    "a tensor outside the file": (Gguf(tensors=[Tensor("t", (1 << 30,), bytes(32))]).to_bytes(), "inside the tensor t"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_refused_with_what_is_wrong_with_it(folder: Path, name: str) -> None:
    content, reason = CASES[name]
    path = folder / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(BadModelFile, match=r"bad\.gguf: .*at byte") as caught:
        read_gguf(path)
    assert reason in caught.value.message


def test_a_missing_file_is_a_bad_model_file(folder: Path) -> None:
    with pytest.raises(BadModelFile, match="cannot be read"):
        read_gguf(folder / "nothing.gguf")


def test_a_sound_file_cut_at_any_byte_is_refused(folder: Path) -> None:
    whole, path = SOUND.to_bytes(), folder / "cut.gguf"
    last_byte = len(whole) - 12  # the last tensor's end; padding after it may be missing
    for length in range(last_byte):
        path.write_bytes(whole[:length])
        with pytest.raises(BadModelFile):
            read_gguf(path)
    path.write_bytes(whole[:last_byte])
    assert len(read_gguf(path).tensors) == 2


@given(place=st.integers(0, len(SOUND.to_bytes()) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_within_bounds(folder: Path, place: int, byte: int) -> None:
    whole = bytearray(SOUND.to_bytes())
    whole[place] = byte
    path = folder / "changed.gguf"
    path.write_bytes(whole)
    try:
        header = read_gguf(path)
    except BadModelFile:
        return
    assert all(0 < tensor.start <= tensor.start + tensor.size_bytes <= len(whole) for tensor in header.tensors.values())
    assert all(key.entry_start < key.items_start <= key.stop <= len(whole) for key in header.keys.values())


@given(noise=st.binary(max_size=400))
def test_noise_after_a_sound_start_is_refused_or_read(folder: Path, noise: bytes) -> None:
    path = folder / "noise.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 3) + noise)
    with contextlib.suppress(BadModelFile):  # any other error fails the test
        read_gguf(path)
