"""What one stage runs next: one row of each of several sequences, or one chunk of a prompt."""

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from services.worker.domain.flow import Flow, chunk_credit
from services.worker.domain.seat import Feed, FlowKey, Seat
from shared.domain.hidden import HiddenRows
from shared.domain.numerics import ANY_ROWS, call_rows

Hidden = NDArray[np.float32]
T = TypeVar("T")


def rows_of(hidden: Hidden) -> HiddenRows:
    """As frames and chains take them."""
    return HiddenRows(np.asarray(hidden, "<f4").tobytes(), hidden.shape[1])


def hidden_of(rows: HiddenRows) -> Hidden:
    """As the engine takes them."""
    return np.frombuffer(rows.data, "<f4").reshape(-1, rows.width)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the engine. `first`: position of the first row; DecodeCall: one per seat."""

    seats: tuple[Seat, ...]


@dataclass(frozen=True, slots=True)
class DecodeCall(Call):
    positions: tuple[int, ...]
    x: Sequence[int] | Sequence[Hidden]
    """Per seat its token id (stage 0) or its row, float32 [n_embd]."""


@dataclass(frozen=True, slots=True)
class PrefillCall(Call):
    """Rows [first, first + num_rows) of one seat."""

    first: int
    num_rows: int
    x: Sequence[int] | Hidden
    """Token ids (stage 0) or float32 [num_rows, n_embd]."""
    final: bool
    """Its last row yields a token."""

    @property
    def seat(self) -> Seat:
        return self.seats[0]

    @property
    def is_recall(self) -> bool:
        """The rows are here from an earlier epoch: they only go by."""
        return self.first < self.seat.start_row


class Source(ABC):
    """Where a stage's work waits."""

    @abstractmethod
    def take_decode(self) -> DecodeCall | None:
        """The rows that may run now, merged into one call; None when there are none."""

    @abstractmethod
    def take_prefill(self) -> PrefillCall | None:
        """The next chunk that may run now, or None."""

    @abstractmethod
    def forget(self, seat: Seat) -> None:
        """The seat was freed: drop what waits for it."""


class Turns:
    """Decode and prefill take turns while both have work, so that neither starves the other."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._prefill_next = False

    def next_call(self) -> DecodeCall | PrefillCall | None:
        takes = (self._source.take_prefill, self._source.take_decode)
        for take in takes if self._prefill_next else reversed(takes):
            call = take()
            if call is not None:
                self._prefill_next = isinstance(call, DecodeCall)
                return call
        return None


class Intake(Source):
    """Work of a later stage: rows as they came from the stage before, each seat's in order."""

    def __init__(self) -> None:
        self._rows: deque[tuple[Seat, int, Hidden]] = deque()
        self._chunks: deque[PrefillCall] = deque()

    @property
    def num_waiting(self) -> int:
        return len(self._rows) + len(self._chunks)

    def add_row(self, seat: Seat, position: int, hidden: Hidden) -> None:
        self._rows.append((seat, position, hidden))

    def add_chunk(self, seat: Seat, first: int, hidden: Hidden, *, final: bool) -> None:
        self._chunks.append(PrefillCall((seat,), first, len(hidden), hidden, final))

    def take_decode(self) -> DecodeCall | None:
        """As much of what waits as may go in one call: bigger batches cost less per row. A seat has one row waiting at
        most."""
        if not self._rows:
            return None
        return DecodeCall(*zip(*_take_alike(self._rows), strict=True))

    def take_prefill(self) -> PrefillCall | None:
        return self._chunks.popleft() if self._chunks else None

    def forget(self, seat: Seat) -> None:
        self._rows = deque(row for row in self._rows if row[0] is not seat)
        self._chunks = deque(chunk for chunk in self._chunks if chunk.seat is not seat)


class Feeder(Source):
    """Work of stage 0: what the sessions' feeds have ready, as far as their rings take more."""

    def __init__(self) -> None:
        self._flows: dict[FlowKey, Flow[Seat]] = {}
        self._seats: dict[FlowKey, deque[tuple[Seat, Feed]]] = {}
        """Per ring, in the order in which their turn comes."""
        self._rows: deque[tuple[Seat, int, int]] = deque()
        """Seat, position and id of decode rows whose batch has started, but that no call has taken yet."""
        self._rings: deque[FlowKey] = deque()
        """In the order in which their turn to prefill comes."""

    @property
    def num_waiting(self) -> int:
        feeds = (feed for _, feed in itertools.chain.from_iterable(self._seats.values()))
        return len(self._rows) + sum(feed.decode_waits or feed.prefill_waits for feed in feeds)

    def add(self, seat: Seat, feed: Feed, *, num_stages: int, max_batches: int) -> None:
        """Feed a new seat. The newest assignment decides how many batches its ring takes."""
        flow = self._flows.get(seat.flow)
        if flow is None:
            flow = self._flows[seat.flow] = Flow(max_batches=max_batches, max_chunks=chunk_credit(num_stages))
            self._seats[seat.flow] = deque()
            self._rings.append(seat.flow)
        flow.max_batches = max_batches
        self._seats[seat.flow].append((seat, feed))

    def passed(self, seat: Seat, end: int) -> None:
        """Every row of `seat` before `end` has come round."""
        self._flows[seat.flow].passed(seat, end)

    def flow(self, key: FlowKey) -> Flow[Seat] | None:
        return self._flows.get(key)

    def take_decode(self) -> DecodeCall | None:
        """A batch that is too large for its sessions' row class goes in several calls."""
        if not self._rows:
            for key, flow in self._flows.items():
                if flow.may_start_batch:
                    self._start_rows(self._take_batch(flow, self._seats[key]))
        if not self._rows:
            return None
        return DecodeCall(*zip(*_take_alike(self._rows), strict=True))

    def take_prefill(self) -> PrefillCall | None:
        """Rings in turn, and within a ring sessions in turn: a long prompt does not hold up a short one."""
        for _ in range(len(self._rings)):
            key = self._rings[0]
            self._rings.rotate(-1)
            flow, seats = self._flows[key], self._seats[key]
            if not flow.may_start_chunk:
                continue
            for place, (seat, feed) in enumerate(seats):
                if feed.prefill_waits:
                    del seats[place]
                    seats.append((seat, feed))
                    return self._start_chunk(flow, seat, feed)
        return None

    def forget(self, seat: Seat) -> None:
        flow = self._flows.get(seat.flow)
        if flow is None:
            return
        flow.forget(seat)
        self._rows = deque(row for row in self._rows if row[0] is not seat)
        left = deque(entry for entry in self._seats[seat.flow] if entry[0] is not seat)
        self._seats[seat.flow] = left
        if not left:
            del self._flows[seat.flow], self._seats[seat.flow]
            self._rings.remove(seat.flow)

    def _take_batch(self, flow: Flow[Seat], seats: deque[tuple[Seat, Feed]]) -> list[tuple[Seat, Feed]]:
        share = flow.batch_share(sum(feed.decodes for _, feed in seats))
        ready = list(itertools.islice((entry for entry in seats if entry[1].decode_waits), share))
        if ready:
            flow.start_batch([seat for seat, _ in ready])
            if flow.max_batches > 1:  # who was left out comes first next time
                chosen = {id(seat) for seat, _ in ready}
                kept = [entry for entry in seats if id(entry[0]) not in chosen]
                seats.clear()
                seats.extend(kept + ready)
        return ready

    def _start_rows(self, batch: Sequence[tuple[Seat, Feed]]) -> None:
        for seat, feed in batch:
            self._rows.append((seat, feed.started, feed.ids[feed.started]))
            _start(seat, feed, 1)

    def _start_chunk(self, flow: Flow[Seat], seat: Seat, feed: Feed) -> PrefillCall:
        first, schedule = feed.started, seat.windows.schedule
        if first < seat.start_row:
            num_rows = seat.recall(first)
            feed.started += num_rows
            flow.start_chunk(seat, feed.started)
            return PrefillCall((seat,), first, num_rows, (), final=False)
        # What was committed before this epoch goes by itself: some stages may have it already.
        num_known = schedule.first_row if first < schedule.first_row else feed.num_prefix
        num_rows = call_rows(first, num_known=num_known, num_prompt=schedule.num_prompt, row_class=seat.row_class)
        ids = feed.ids[first : first + num_rows]
        _start(seat, feed, num_rows)
        flow.start_chunk(seat, feed.started)
        return PrefillCall((seat,), first, num_rows, ids, final=feed.is_due(feed.started - 1))


def _take_alike(rows: deque[tuple[Seat, int, T]]) -> list[tuple[Seat, int, T]]:
    """The first of `rows`, as many as fit into one call: no seat may be in a larger one than its row class allows."""
    most = len(rows)
    taken: list[tuple[Seat, int, T]] = []
    while rows:
        allowed = rows[0][0].row_class
        most = most if allowed == ANY_ROWS else min(most, allowed)
        if len(taken) >= most:
            break
        taken.append(rows.popleft())
    return taken


def _start(seat: Seat, feed: Feed, num_rows: int) -> None:
    feed.started += num_rows
    seat.accepted += num_rows
    seat.waiting += 1
