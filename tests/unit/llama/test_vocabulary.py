import codecs
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.errors import BadModelFile, InvalidToken
from shared.llama.cutting import open_model, vocabulary_file
from shared.llama.library import load_library
from shared.llama.vocabulary import Vocabulary
from tests.fakes.tiny_models import CHAT_TEMPLATE, N_VOCAB, write_tiny_model

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("vocabulary") / "tiny.gguf")


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[Vocabulary]:
    vocabulary = Vocabulary(load_library(), tiny_model)
    yield vocabulary
    vocabulary.close()


@pytest.fixture(scope="module")
def demo(demo_model: Path) -> Iterator[Vocabulary]:
    vocabulary = Vocabulary(load_library(), demo_model)
    yield vocabulary
    vocabulary.close()


def joined(vocabulary: Vocabulary, ids: list[int]) -> str:
    text = b"".join(map(vocabulary.piece, ids)).decode()
    return text.removeprefix(" ") if vocabulary.adds_space_prefix else text


@pytest.mark.parametrize(
    "text", ["", " ", "Hello, world!\n", "  two  spaces", "Grüße, 世界 🦋", "def f(x):\n\treturn x", "<|x|>"]
)
def test_text_comes_back_from_its_ids(demo: Vocabulary, text: str) -> None:
    assert joined(demo, demo.tokenize(text, add_special=False, parse_special=False)) == text


@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_text_comes_back_from_a_vocabulary_that_puts_a_space_in_front(tiny: Vocabulary, text: str) -> None:
    assert joined(tiny, tiny.tokenize(text, add_special=False, parse_special=False)) == text


def test_a_character_may_be_spread_over_several_pieces(demo: Vocabulary) -> None:
    pieces = [demo.piece(i) for i in demo.tokenize("🦋", add_special=False, parse_special=False)]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    assert len(pieces) == 3
    assert [decoder.decode(piece) for piece in pieces] == ["", "", "🦋"]


def test_lone_surrogates_and_zero_bytes_do_no_harm(demo: Vocabulary) -> None:
    ids = demo.tokenize("a\0b\ud800c", add_special=False, parse_special=False)

    assert b"".join(map(demo.piece, ids)) == b"a\0b?c"


def test_written_out_control_tokens_of_a_client_stay_text(demo: Vocabulary) -> None:
    plain = demo.tokenize("<|im_end|>", add_special=False, parse_special=False)

    assert not set(plain) & set(demo.end_ids)
    assert demo.tokenize("<|im_end|>", add_special=False, parse_special=True) == [demo.eos_id]


def test_control_tokens_have_no_bytes_unless_asked_for(demo: Vocabulary) -> None:
    assert demo.eos_id is not None
    assert demo.piece(demo.eos_id) == b""
    assert demo.piece(demo.eos_id, special=True) == b"<|im_end|>"


def test_the_demo_model_has_three_end_ids_and_a_chat_template(demo: Vocabulary) -> None:
    assert demo.end_ids == (0, 2, 4)
    assert (demo.bos_piece, demo.eos_piece, demo.adds_bos) == ("<|im_start|>", "<|im_end|>", False)
    assert demo.chat_template is not None
    assert "<|im_start|>" in demo.chat_template
    assert not demo.adds_space_prefix


def test_bos_is_added_only_when_asked_for(tiny: Vocabulary) -> None:
    assert tiny.adds_bos
    assert tiny.tokenize("a", add_special=True, parse_special=False)[0] == BOS
    assert BOS not in tiny.tokenize("a", add_special=False, parse_special=False)


def test_the_table_of_pieces_has_every_id(tiny: Vocabulary) -> None:
    table = tiny.pieces()

    assert len(table) == tiny.n_tokens == N_VOCAB
    assert table[259] == b" "


def test_a_file_of_keys_without_tensors_is_enough(tiny_model: Path, tmp_path: Path) -> None:
    keys_only = tmp_path / "vocabulary.gguf"
    vocabulary_file(open_model(tiny_model)).write_to(keys_only)
    vocabulary = Vocabulary(load_library(), keys_only)

    assert keys_only.stat().st_size < 20_000
    assert (vocabulary.n_tokens, vocabulary.end_ids, vocabulary.chat_template) == (N_VOCAB, (EOS,), CHAT_TEMPLATE)
    vocabulary.close()


def test_an_id_outside_the_vocabulary_is_refused(tiny: Vocabulary) -> None:
    for token_id in (-1, N_VOCAB):
        with pytest.raises(InvalidToken):
            tiny.piece(token_id)


def test_a_file_that_is_no_model_is_refused_with_the_librarys_reason(tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"GGUF but not really")

    with pytest.raises(BadModelFile, match=r"bad\.gguf holds no readable vocabulary: .+"):
        Vocabulary(load_library(), file)


def test_closing_twice_does_no_harm(tiny_model: Path) -> None:
    vocabulary = Vocabulary(load_library(), tiny_model)
    vocabulary.close()
    vocabulary.close()
