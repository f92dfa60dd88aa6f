from itertools import pairwise

import pytest

from services.worker.domain.window_keeper import Due, WindowKeeper
from shared.domain.chain import chain_start, class_hash, id_bytes, record_chain, sampler_hash
from shared.domain.errors import InvalidInput
from shared.domain.plan import LayerRange
from shared.domain.task import SamplerParams, TokenRecord
from tests.fakes.seats import keeper_of

NUMERICS = class_hash("synthetic")
FIRST_ORDER = "00" * 32


def rows(first: int, end: int) -> list[bytes]:
    return [id_bytes(row) for row in range(first, end)]


def records(first: int, end: int) -> list[TokenRecord]:
    return [TokenRecord(row, 1.5, 0, 0.5) for row in range(first, end)]


def signed_all(keeper: WindowKeeper) -> list[Due]:
    """What is due, signed with digests "1…", "2…", and so on."""
    found: list[Due] = []
    while (due := keeper.due()) is not None:
        found.append(due)
        keeper.signed(str(due.receipt.window + 1) * 64)
    return found


def test_nothing_is_due_before_the_last_row_of_a_window() -> None:
    keeper = keeper_of(prompt_ids=(1, 2, 3))
    keeper.extend(rows(0, 2), outputs=rows(0, 2))
    assert keeper.due() is None
    keeper.extend(rows(2, 3), outputs=rows(2, 3))
    due = keeper.due()
    assert due is not None
    assert (due.receipt.window, due.receipt.row_start, due.receipt.row_end) == (0, 0, 3)
    assert due == keeper.due()


def test_receipts_follow_each_other_from_the_order_on() -> None:
    keeper = keeper_of(prompt_ids=(1, 2, 3))
    keeper.extend(rows(0, 40), outputs=rows(0, 40))
    found = [due.receipt for due in signed_all(keeper)]
    assert [(one.row_start, one.row_end) for one in found] == [(0, 3), (3, 13), (13, 33)]
    assert [one.prev_receipt for one in found] == [FIRST_ORDER, "1" * 64, "2" * 64]
    assert found[0].in_start == chain_start("root", 0, numerics_hash=NUMERICS).hex()
    assert found[0].out_start == chain_start("root", 2, numerics_hash=NUMERICS).hex()
    for before, after in pairwise(found):
        assert (after.in_start, after.out_start) == (before.in_digest, before.out_digest)


def test_chunks_do_not_show_in_a_receipt() -> None:
    by_row, at_once = keeper_of(), keeper_of()
    for row in range(20):
        by_row.extend(rows(row, row + 1), outputs=rows(row, row + 1))
    at_once.extend(rows(0, 20), outputs=rows(0, 20))
    assert signed_all(by_row) == signed_all(at_once)


def test_the_records_of_the_last_stage_begin_at_the_last_row_of_the_prompt() -> None:
    keeper = keeper_of(layers=LayerRange(4, 6), prompt_ids=(1, 2, 3), keeps_records=True)
    keeper.extend(rows(0, 3), records=records(2, 3))
    keeper.extend(rows(3, 15), records=records(3, 15))
    first, second = signed_all(keeper)
    sampler = sampler_hash(SamplerParams(temperature=0.0))
    start = chain_start("root", 6, numerics_hash=NUMERICS, sampler=sampler)
    chain = record_chain(start, row=2, records=records(2, 15))
    assert (first.receipt.out_start, first.receipt.out_digest) == (start.hex(), chain.at(3).hex())
    assert (second.receipt.out_start, second.receipt.out_digest) == (chain.at(3).hex(), chain.at(13).hex())
    assert (list(first.records), list(second.records)) == (records(2, 3), records(3, 13))


def test_records_are_kept_only_where_they_go_with_the_receipts() -> None:
    keeper = keeper_of(layers=LayerRange(4, 6), prompt_ids=(1, 2, 3))
    keeper.extend(rows(0, 3), records=records(2, 3))
    assert [due.records for due in signed_all(keeper)] == [()]


def test_an_epoch_that_goes_on_has_the_digests_it_had_before() -> None:
    whole = keeper_of(prompt_ids=(1, 2, 3))
    whole.extend(rows(0, 33), outputs=rows(0, 33))
    later = signed_all(whole)[2].receipt
    again = keeper_of(
        prompt_ids=(1, 2, 3), generated_ids=tuple(range(11)), first_window=2
    )  # rows 0 to 12 are committed
    again.extend(rows(0, 7), outputs=rows(0, 7))
    again.extend(rows(7, 23), outputs=rows(7, 23))
    (due,) = signed_all(again)
    assert (due.receipt.window, due.receipt.row_start, due.receipt.row_end) == (2, 13, 23)
    assert (due.receipt.in_start, due.receipt.out_start) == (later.in_start, later.out_start)
    again.extend(rows(23, 33), outputs=rows(23, 33))
    assert again.due() is None
    again.extend(rows(33, 43), outputs=rows(33, 43))
    whole.extend(rows(33, 73), outputs=rows(33, 73))
    assert signed_all(whole)[0].receipt.out_start == later.out_digest


def test_the_records_of_an_epoch_that_goes_on_begin_with_what_was_committed() -> None:
    keeper = keeper_of(
        layers=LayerRange(4, 6),
        prompt_ids=(1, 2, 3),
        generated_ids=tuple(range(11)),
        first_window=2,
        sink_start="07" * 32,
        keeps_records=True,
    )
    keeper.extend(rows(0, 13))
    keeper.extend(rows(13, 23), records=records(13, 23))
    (due,) = signed_all(keeper)
    chain = record_chain(b"\7" * 32, row=13, records=records(13, 23))
    assert (due.receipt.out_start, due.receipt.out_digest) == ("07" * 32, chain.at(23).hex())
    assert list(due.records) == records(13, 23)


def test_a_window_that_ends_early_is_signed_there_and_is_the_last() -> None:
    keeper = keeper_of(prompt_ids=(1, 2, 3))
    keeper.seal(1, 7)
    keeper.extend(rows(0, 6), outputs=rows(0, 6))
    assert [due.receipt.row_end for due in signed_all(keeper)] == [3]
    keeper.extend(rows(6, 8), outputs=rows(6, 8))
    whole = keeper_of(prompt_ids=(1, 2, 3))
    whole.extend(rows(0, 7), outputs=rows(0, 7))
    signed_all(whole)
    whole.seal(1, 7)
    (early,), (late,) = signed_all(keeper), signed_all(whole)
    assert early == late
    keeper.extend(rows(8, 60), outputs=rows(8, 60))
    assert keeper.due() is None


def test_a_window_that_is_signed_is_not_signed_again() -> None:
    keeper = keeper_of(prompt_ids=(1, 2, 3))
    keeper.extend(rows(0, 13), outputs=rows(0, 13))
    assert len(signed_all(keeper)) == 2
    for row_end in (7, 60):
        keeper.seal(1, row_end)
    assert keeper.due() is None
    keeper.extend(rows(13, 33), outputs=rows(13, 33))
    assert [due.receipt.row_end for due in signed_all(keeper)] == [33]


def test_a_window_cannot_end_outside_itself() -> None:
    keeper = keeper_of(prompt_ids=(1, 2, 3))
    for row_end in (3, 14):
        with pytest.raises(InvalidInput, match="cannot end"):
            keeper.seal(1, row_end)
