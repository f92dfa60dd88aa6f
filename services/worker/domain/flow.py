"""Flow control of one ring, kept by its stage 0."""

import math
from collections.abc import Collection, Hashable
from typing import Generic, TypeVar

Place = TypeVar("Place", bound=Hashable)

CHUNKS_BESIDE_STAGES = 2  # so many prompt chunks more than stages may be under way: every stage has one to go on with


def chunk_credit(num_stages: int) -> int:
    """Prompt chunks that one ring may hold at once."""
    return CHUNKS_BESIDE_STAGES + num_stages


class Flow(Generic[Place]):
    """What stage 0 has started on one ring and not seen again.

    It counts rows, not frames, so every stage may split and merge what waits there as it likes. The invariant: a
    decode row that was started is in exactly one of three states. It is outstanding; or its answer came back
    (`passed`); or its seat was freed (`forget`). A seat has at most one decode row outstanding, since its next row
    is the answer. A batch is open while one of its rows is outstanding, and at most `max_batches` are open. The same
    holds for prompt chunks, of which a seat may have several outstanding, answered in order or together.

    So whatever a ring holds was admitted here, and whatever was admitted here is released by one of two events that
    the coordinator can always bring about: the row comes back, or the seat is freed.
    """

    def __init__(self, *, max_batches: int, max_chunks: int) -> None:
        self.max_batches = max_batches
        self.max_chunks = max_chunks
        self._last_batch = 0
        self._rows_open: dict[int, int] = {}
        self._batch_of: dict[Place, int] = {}
        self._chunk_ends: dict[Place, list[int]] = {}
        self._chunks = 0

    @property
    def open_batches(self) -> int:
        return len(self._rows_open)

    @property
    def outstanding_rows(self) -> int:
        return len(self._batch_of)

    @property
    def outstanding_chunks(self) -> int:
        return self._chunks

    @property
    def may_start_batch(self) -> bool:
        return len(self._rows_open) < self.max_batches

    @property
    def may_start_chunk(self) -> bool:
        return self._chunks < self.max_chunks

    def batch_share(self, num_decoding: int) -> int:
        """Rows one batch takes at most, so that `max_batches` of them share the sequences evenly."""
        return math.ceil(num_decoding / self.max_batches)

    def start_batch(self, places: Collection[Place]) -> None:
        """One row of each of `places` goes into the ring; none of them has one there yet."""
        self._last_batch += 1
        self._rows_open[self._last_batch] = len(places)
        for place in places:
            self._batch_of[place] = self._last_batch

    def start_chunk(self, place: Place, end: int) -> None:
        """Prompt rows up to `end` go into the ring."""
        self._chunk_ends.setdefault(place, []).append(end)
        self._chunks += 1

    def passed(self, place: Place, end: int) -> None:
        """Every row of `place` before `end` has come round."""
        ends = self._chunk_ends.get(place)
        if ends:
            left = [chunk_end for chunk_end in ends if chunk_end > end]
            self._chunks -= len(ends) - len(left)
            self._chunk_ends[place] = left
            if not left:
                del self._chunk_ends[place]
        else:
            self._close_row(place)

    def forget(self, place: Place) -> None:
        """The seat is gone: nothing of it is waited for."""
        self._chunks -= len(self._chunk_ends.pop(place, ()))
        self._close_row(place)

    def _close_row(self, place: Place) -> None:
        batch = self._batch_of.pop(place, None)
        if batch is None:
            return
        self._rows_open[batch] -= 1
        if not self._rows_open[batch]:
            del self._rows_open[batch]
