from hypothesis import given
from hypothesis import strategies as st

from services.api.domain.answer_text import AnswerText
from services.api.domain.detokenizer import TextDecoder
from services.api.domain.stop_text import StopText
from tests.fakes.catalogue import END_ID, ByteVocabulary, tokens_of

PIECES = ByteVocabulary().pieces


def answer(*stops: str) -> AnswerText:
    return AnswerText(pieces=PIECES, end_ids=(END_ID,), stops=stops)


@given(st.text(max_size=60), st.integers(1, 5))
def test_decoding_in_pieces_of_any_size_gives_the_text(text: str, size: int) -> None:
    decoder, data = TextDecoder(), text.encode()
    parts = [decoder.feed(data[first : first + size]) for first in range(0, len(data), size)]
    assert "".join(parts) + decoder.finish() == text


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    decoder = TextDecoder()
    assert decoder.feed(b"a\xff") == "a\ufffd"
    assert decoder.feed("é".encode()[:1]) == ""
    assert decoder.finish() == "\ufffd"


def test_one_leading_space_is_dropped_where_the_vocabulary_adds_it() -> None:
    decoder = TextDecoder(drop_leading_space=True)
    assert decoder.feed(b"") == ""
    assert decoder.feed(b"  two") == " two"
    assert decoder.feed(b" three") == " three"


@given(st.text("ab.", max_size=40), st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3), st.integers(1, 4))
def test_text_ends_before_the_stop_string_that_is_complete_first(text: str, stops: list[str], size: int) -> None:
    stopping = StopText(stops)
    shown = "".join(stopping.feed(character) for character in text) + stopping.finish()
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    if not ends:
        assert shown == text
        return
    first_end = min(ends)[0]
    assert shown == text[: min(at for end, at in ends if end == first_end)]
    assert stopping.stopped


@given(st.text("ab", max_size=20), st.text("ab", min_size=1, max_size=4))
def test_nothing_is_shown_that_a_stop_string_takes_back(text: str, stop: str) -> None:
    stopping, shown = StopText([stop]), ""
    for character in text:
        shown += stopping.feed(character)
        assert stop not in shown


def test_tokens_after_the_stop_string_do_not_count() -> None:
    text = answer("END")
    part = text.feed(tokens_of("one ENDLESS"))
    assert (part.text, text.num_tokens, len(part.tokens)) == ("one ", 7, 7)
    assert text.feed(tokens_of("more")).text == ""
    assert text.finish().text == ""


def test_an_end_token_ends_the_text_and_does_not_count() -> None:
    text = answer()
    (end,) = tokens_of("x")
    end = type(end)(END_ID, 0.0, other_id=0, other_logit=0.0)
    part = text.feed((*tokens_of("hi"), end, *tokens_of("no")))
    assert (part.text, text.num_tokens) == ("hi", 2)


def test_what_could_have_become_a_stop_string_is_shown_at_the_end() -> None:
    text = answer("END")
    assert text.feed(tokens_of("the EN")).text == "the "
    assert text.finish().text == "EN"


def test_offsets_count_characters_and_not_bytes() -> None:
    text = answer()
    part = text.feed(tokens_of("éa"))
    assert [token.text_offset for token in part.tokens] == [0, 0, 1]
