from hypothesis import given
from hypothesis import strategies as st

from services.worker.domain.slots import compaction_move, count_runs, lowest_free_slot

used_slots = st.sets(st.integers(0, 15))


def test_the_lowest_gap_is_given_out_first() -> None:
    assert lowest_free_slot({0, 1, 3}, 8) == 2


def test_a_full_stage_has_no_free_slot() -> None:
    assert lowest_free_slot(range(4), 4) is None


def test_adjacent_slots_need_no_move() -> None:
    assert compaction_move({0, 1, 2, 3}) is None
    assert compaction_move(set()) is None


def test_the_highest_sequence_moves_into_the_lowest_gap() -> None:
    assert compaction_move({0, 2, 4, 6}) == (6, 1)


def test_one_gap_among_eight_sequences_is_tolerated() -> None:
    assert compaction_move({0, 1, 2, 3, 4, 5, 6, 8}) is None
    assert compaction_move({0, 1, 2, 3, 5}) == (5, 4)


@given(used=used_slots)
def test_moving_until_nothing_is_to_be_moved_ends_with_tolerable_gaps(used: set[int]) -> None:
    active = len(used)
    for _ in range(16):
        move = compaction_move(used)
        if move is None:
            break
        source, target = move
        assert source in used
        assert target not in used
        assert target < source
        used = (used - {source}) | {target}

    assert compaction_move(used) is None
    assert len(used) == active
    assert count_runs(used) <= 1 + active / 8
