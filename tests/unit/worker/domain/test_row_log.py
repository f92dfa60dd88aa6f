"""What a seat has passed on can be asked for again, whole or not at all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.worker.domain.row_log import BLOCK_ROWS, RowLog, RowLogs
from shared.domain.errors import RowsNotKept

WIDTH = 4
ROW_BYTES = WIDTH * 4
MAX_ROWS = 3 * BLOCK_ROWS - 100
ROOM_BYTES = 3 * BLOCK_ROWS * ROW_BYTES


def rows(first: int, num_rows: int) -> NDArray[np.float32]:
    return np.arange(first * WIDTH, (first + num_rows) * WIDTH, dtype=np.float32).reshape(num_rows, WIDTH)


def log_of(num_rows: int, logs: RowLogs | None = None) -> RowLog:
    log = RowLog(logs or RowLogs(ROOM_BYTES), max_rows=MAX_ROWS)
    log.extend(0, rows(0, num_rows))
    return log


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, MAX_ROWS))))
def test_it_gives_back_what_it_took_in_whatever_was_cut_off_on_the_way(steps: list[tuple[int, int]]) -> None:
    logs = RowLogs(ROOM_BYTES)
    log, expected = RowLog(logs, max_rows=MAX_ROWS), np.empty((0, WIDTH), np.float32)
    is_closed = False
    for place, (num_rows, kept) in enumerate(steps):
        more = rows(1000 * place, num_rows)
        log.extend(len(expected), more)
        is_closed = is_closed or len(expected) + num_rows > MAX_ROWS
        expected = expected[:0] if is_closed else np.concatenate([expected, more])
        log.cut(kept)
        expected = expected[:kept]
        assert log.num_rows == len(expected)
        if len(expected):
            assert np.array_equal(log.rows(0, len(expected)), expected)
    log.close()
    log.close()
    assert logs.held_bytes == 0


def test_rows_that_are_not_here_are_not_made_up() -> None:
    with pytest.raises(RowsNotKept, match="rows 4 to 6 were not kept, but 5"):
        log_of(5).rows(4, 2)


def test_a_log_with_a_gap_is_of_no_use_and_closes() -> None:
    logs = RowLogs(ROOM_BYTES)
    log = log_of(5, logs)
    log.extend(6, rows(6, 2))
    assert (log.num_rows, logs.held_bytes) == (0, 0)


def test_what_finds_no_room_gives_up_its_own_and_leaves_the_other_logs_alone() -> None:
    logs = RowLogs(2 * BLOCK_ROWS * ROW_BYTES)
    first, second = log_of(10, logs), log_of(10, logs)
    second.extend(10, rows(10, BLOCK_ROWS))
    assert (first.num_rows, second.num_rows) == (10, 0)
    first.extend(10, rows(10, BLOCK_ROWS))  # in the room that the other has left
    assert np.array_equal(first.rows(0, BLOCK_ROWS + 10), rows(0, BLOCK_ROWS + 10))


def test_a_closed_log_takes_nothing_more() -> None:
    log = log_of(3)
    log.close()
    log.extend(0, rows(0, 3))
    assert log.num_rows == 0
