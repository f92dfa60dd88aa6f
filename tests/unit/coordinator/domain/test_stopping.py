"""Where an answer ends."""

from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.domain.stopping import AnswerEnd, Ending
from services.coordinator.domain.token_table import TokenTable
from shared.domain.task import FinishReason, StopRules
from tests.fakes.partitioner import token_block

PIECES = [b"", b"a", b"b", b"ab", b"ba", b"aab", b"\xc3", b"\xa9", b"c", b"abcabc"]
TABLE = TokenTable(token_block(PIECES))


def first_ending(rules: StopRules, ids: list[int], *, limit: int = 1_000) -> Ending | None:
    answer = AnswerEnd(rules, limit=limit, table=TABLE)
    for token_id in ids:
        ending = answer.feed(token_id)
        if ending is not None:
            return ending
    return None


def test_an_end_token_ends_the_answer_and_is_counted() -> None:
    assert first_ending(StopRules(end_ids=(7,)), [1, 2, 7, 3]) == Ending(FinishReason.STOP, 3)


def test_the_limit_ends_the_answer() -> None:
    assert first_ending(StopRules(), [1, 2, 3], limit=2) == Ending(FinishReason.LENGTH, 2)


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    assert first_ending(StopRules(end_ids=(2,)), [1, 2], limit=2) == Ending(FinishReason.STOP, 2)


def test_a_stop_string_inside_one_token_is_found() -> None:
    assert first_ending(StopRules(strings=("ca",)), [1, 9]) == Ending(FinishReason.STOP, 2)


def test_a_stop_string_over_three_tokens_and_an_empty_one_is_found() -> None:
    assert first_ending(StopRules(strings=("abc",)), [2, 1, 2, 0, 8]) == Ending(FinishReason.STOP, 5)


def test_a_character_cut_over_two_tokens_is_found() -> None:
    assert first_ending(StopRules(strings=("é",)), [1, 6, 7]) == Ending(FinishReason.STOP, 3)


def test_the_end_of_a_stop_string_alone_is_no_stop() -> None:
    assert first_ending(StopRules(strings=("cab",)), [3, 3, 3]) is None


@given(
    st.lists(st.integers(0, len(PIECES) - 1), max_size=30),
    st.lists(st.sampled_from(["a", "ab", "aba", "bab", "é", "abcabcab", "cc"]), max_size=3),
)
def test_the_answer_ends_at_the_first_token_with_which_its_text_holds_a_stop_string(
    ids: list[int], strings: list[str]
) -> None:
    expected = None
    for count in range(1, len(ids) + 1):
        text = b"".join(PIECES[token_id] for token_id in ids[:count])
        if any(string.encode() in text for string in strings):
            expected = Ending(FinishReason.STOP, count)
            break
    assert first_ending(StopRules(strings=tuple(strings)), ids) == expected
