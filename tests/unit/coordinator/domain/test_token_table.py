"""The table of tokens' bytes as the partitioner sends it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.domain.token_table import TokenTable
from shared.domain.errors import ProtocolViolation
from tests.fakes.partitioner import token_block


@given(st.lists(st.binary(max_size=20), max_size=30))
def test_every_token_is_found_again(tokens: list[bytes]) -> None:
    table = TokenTable(token_block(tokens))
    assert len(table) == len(tokens)
    assert [table.bytes_of(token_id) for token_id in range(len(tokens))] == tokens


@given(st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=5), st.data())
def test_a_table_that_is_cut_short_is_refused(tokens: list[bytes], data: st.DataObject) -> None:
    block = token_block(tokens)
    with pytest.raises(ProtocolViolation):
        TokenTable(block[: data.draw(st.integers(0, len(block) - 1))])


def test_a_table_with_bytes_to_spare_is_refused() -> None:
    with pytest.raises(ProtocolViolation):
        TokenTable(token_block([b"a"]) + b"x")


def test_a_count_that_the_bytes_cannot_hold_is_refused_at_once() -> None:
    with pytest.raises(ProtocolViolation):
        TokenTable(b"\xff\xff\xff\xff" + b"\x00\x00")


@pytest.mark.parametrize("token_id", [-1, 2])
def test_ids_outside_the_vocabulary_have_no_bytes(token_id: int) -> None:
    with pytest.raises(IndexError):
        TokenTable(token_block([b"a", b"b"])).bytes_of(token_id)
