import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.domain.errors import BadModelFile, UnsupportedModel
from shared.llama.cutting import ModelFile, open_model
from shared.llama.library import load_library
from shared.llama.token_table import token_bytes
from shared.llama.vocabulary import Vocabulary
from tests.fakes.gguf_files import array, small_model, string, strings
from tests.fakes.tiny_models import write_tiny_model

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
INT32 = 5


def pieces(table: bytes) -> list[bytes]:
    (count,) = struct.unpack_from("<I", table)
    found, at = [], 4
    for _ in range(count):
        (length,) = struct.unpack_from("<H", table, at)
        found.append(table[at + 2 : at + 2 + length])
        at += 2 + length
    assert at == len(table)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., ModelFile]:
    def made(kind: str, tokens: list[str], types: list[int] | None) -> ModelFile:
        keys = [string("tokenizer.ggml.model", kind), strings("tokenizer.ggml.tokens", tokens)]
        if types is not None:
            items = [struct.pack("<i", token_type) for token_type in types]
            keys.append(array("tokenizer.ggml.token_type", INT32, items))
        path = tmp_path / "model.gguf"
        path.write_bytes(small_model(more_keys=keys).to_bytes())
        return open_model(path)

    return made


def test_the_demo_models_table_is_what_the_library_says_for_every_token(demo_model: Path) -> None:
    vocabulary = Vocabulary(load_library(), demo_model)
    try:
        assert pieces(token_bytes(open_model(demo_model))) == vocabulary.pieces()
    finally:
        vocabulary.close()


def test_a_sentencepiece_table_is_what_the_library_says_for_every_token(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    vocabulary = Vocabulary(load_library(), path)
    try:
        assert pieces(token_bytes(open_model(path))) == vocabulary.pieces()
    finally:
        vocabulary.close()


def test_byte_level_tokens_become_their_bytes(model: Callable[..., ModelFile]) -> None:
    found = model("gpt2", ["Ġthe", "ðŁ", "<|end|>"], [NORMAL, NORMAL, CONTROL])
    assert pieces(token_bytes(found)) == [b" the", b"\xf0\x9f", b""]


def test_tokens_added_by_hand_are_their_own_text(model: Callable[..., ModelFile]) -> None:
    found = model("gpt2", ["Ġthe", "日本", "x"], [USER_DEFINED, USER_DEFINED, UNUSED])
    assert pieces(token_bytes(found)) == ["Ġthe".encode(), "日本".encode(), b""]


def test_sentencepiece_marks_become_spaces_and_byte_tokens_bytes(model: Callable[..., ModelFile]) -> None:
    found = model("llama", ["▁the▁", "<0xE2>", "<unk>"], [NORMAL, BYTE, UNKNOWN])
    assert pieces(token_bytes(found)) == [b" the ", b"\xe2", b""]


def test_without_types_every_token_is_text(model: Callable[..., ModelFile]) -> None:
    assert pieces(token_bytes(model("llama", ["a", "▁b", "c"], None))) == [b"a", b" b", b"c"]


def test_an_unknown_tokenizer_is_named(model: Callable[..., ModelFile]) -> None:
    with pytest.raises(UnsupportedModel, match="'rwkv'"):
        token_bytes(model("rwkv", ["a", "b", "c"], None))


@pytest.mark.parametrize(
    ("tokens", "types", "reason"),
    [
        (["a", "b", "c"], [NORMAL], "1 token types for 3 tokens"),
        (["a", "b", "<0xGG>"], [NORMAL, NORMAL, BYTE], "names no byte"),
        (["a", "b", "c" * 70_000], [NORMAL] * 3, "token 2 stands for 70000 bytes"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(
    model: Callable[..., ModelFile], tokens: list[str], types: list[int], reason: str
) -> None:
    with pytest.raises(BadModelFile, match=reason):
        token_bytes(model("llama", tokens, types))
