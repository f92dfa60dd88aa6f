from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.domain.batch import BatchLimits, check_places, check_rows, check_wanted
from shared.domain.errors import BadBatch, NoSlotSpace

FIRST = BatchLimits(takes_ids=True, n_embd=8, n_vocab=100, n_slots=4, ctx_per_slot=16, max_rows=12)
LATER = BatchLimits(takes_ids=False, n_embd=8, n_vocab=32, n_slots=4, ctx_per_slot=16, max_rows=12)


def ints(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, np.int32)


def hidden(n_rows: int, value: float = 1.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.full((n_rows, 8), value, np.float32)


@pytest.mark.parametrize(
    ("x", "limits"),
    [
        (ints(), FIRST),
        (ints(*range(13)), FIRST),
        (ints(-1), FIRST),
        (ints(100), FIRST),
        (np.array([1], np.int64), FIRST),
        (ints(1).reshape(1, 1), FIRST),
        (hidden(1), FIRST),
        (ints(1), LATER),
        (hidden(13), LATER),
        (hidden(1).astype(np.float64), LATER),
        (np.ones((1, 7), np.float32), LATER),
        (np.ones((8, 2), np.float32).T, LATER),
        (hidden(2, np.nan), LATER),
        (hidden(2, np.inf), LATER),
        (hidden(2, -np.inf), LATER),
    ],
)
def test_rows_a_stage_cannot_take_are_refused(x: Any, limits: BatchLimits) -> None:
    with pytest.raises(BadBatch):
        check_rows(x, limits)


def test_rows_a_stage_takes_are_counted() -> None:
    assert check_rows(ints(0, 99), FIRST) == 2
    assert check_rows(hidden(12), LATER) == 12


@pytest.mark.parametrize(
    ("slots", "positions"),
    [
        (ints(-1), ints(0)),
        (ints(4), ints(0)),
        (ints(0), ints(1)),
        (ints(0), ints(-1)),
        (ints(1), ints(0)),
        (ints(0, 0), ints(0, 2)),
        (ints(0, 0), ints(1, 0)),
        (ints(0, 0, 1), ints(0, 1, 3)),
        (ints(0, 1, 0), ints(0, 3, 1)),
        (ints(0, 1), ints(0, 0)),
        (ints(0, 1), ints(0)),
        (ints(0), np.array([0], np.int64)),
    ],
)
def test_rows_in_wrong_places_are_refused(slots: Any, positions: Any) -> None:
    with pytest.raises(BadBatch):
        check_places(slots, positions, len(slots), ints(0, 3, 16, 15), FIRST)


def test_a_full_slot_is_told_from_a_bad_batch() -> None:
    lengths = ints(0, 3, 16, 15)

    for slots, positions in ((ints(2), ints(16)), (ints(3, 3), ints(15, 16)), (ints(0, 2), ints(0, 16))):
        with pytest.raises(NoSlotSpace):
            check_places(slots, positions, len(slots), lengths, FIRST)


def test_a_chunk_may_fill_its_slot_to_the_last_row() -> None:
    assert check_places(ints(3), ints(15), 1, ints(0, 3, 16, 15), FIRST) is None
    assert check_places(ints(1, 1), ints(3, 4), 2, ints(0, 3, 16, 15), FIRST) is None


@given(slots=st.permutations(range(4)))
def test_rows_of_several_slots_are_sorted_only_when_they_need_to_be(slots: list[int]) -> None:
    lengths = ints(5, 3, 0, 15)
    given_slots = ints(*slots)

    order = check_places(given_slots, lengths[given_slots], 4, lengths, FIRST)

    if slots == sorted(slots):
        assert order is None
    else:
        assert order is not None
        assert given_slots[order].tolist() == [0, 1, 2, 3]


def test_only_the_last_stage_is_asked_for_chosen_rows() -> None:
    wanted = np.array([True, False])

    check_wanted(wanted, 2, is_last_stage=True)
    check_wanted(None, 2, is_last_stage=False)
    for want, is_last_stage in ((wanted, False), (wanted[:1], True), (wanted.astype(np.int8), True)):
        with pytest.raises(BadBatch):
            check_wanted(want, 2, is_last_stage=is_last_stage)  # type: ignore[arg-type] # a wrong type is the point
