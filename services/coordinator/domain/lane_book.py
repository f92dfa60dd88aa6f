"""What is known of one lane in one epoch: its receipts, and the ids and sample records they are held against."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.domain.chain import RowChain, id_bytes, record_bytes
from shared.domain.errors import ProtocolViolation
from shared.domain.ids import NodeId
from shared.domain.receipt import Assignment, SignedReceipt
from shared.domain.signing import Signed, digest_of
from shared.domain.task import TokenRecord
from shared.domain.window_check import Finding, check_lane, check_receipt
from shared.domain.windows import Window


@dataclass(frozen=True, slots=True)
class Seated:
    """One seat of one lane, as ordered."""

    assignment: Assignment
    order: Signed
    public_key: bytes


class LaneBook:
    def __init__(
        self,
        seats: Sequence[Seated],
        *,
        first_window: int,
        ids: RowChain,
        sink: RowChain,
        posts_records: bool,
        runs_own_ids: bool,
    ) -> None:
        """`ids`: the chain of the ids that the lane runs; `sink`: of its sample records from the epoch's first one on.
        posts_records: with its receipts; else who owns the book extends `sink`. runs_own_ids: as its records name them;
        else who owns the book extends `ids`."""
        self.seats = tuple(seats)
        self.ids, self.sink = ids, sink
        self.next_window = first_window
        """The first that has not been judged."""
        self.faults: dict[int, Finding] = {}
        """Link faults, by window."""
        self._sink_row = sink.row
        self._posts_records, self._runs_own_ids = posts_records, runs_own_ids
        self._receipts: dict[int, dict[int, SignedReceipt]] = {}
        self._records: dict[int, list[tuple[int, bytes]]] = {}
        """Posted by the last stage and not judged: ids, and the bytes that its chain covers."""
        self._next_of_seat = [first_window] * len(seats)

    def receipt(self, window: int, stage: int) -> SignedReceipt | None:
        return self._receipts.get(window, {}).get(stage)

    def of_window(self, window: int) -> tuple[SignedReceipt, ...]:
        """In order of stages; fewer than there are seats while some are missing."""
        return tuple(receipt for _, receipt in sorted(self._receipts.get(window, {}).items()))

    def is_complete(self, window: int) -> bool:
        """Every seat has signed for it, and for all windows before."""
        return all(following > window for following in self._next_of_seat)

    @property
    def laggard(self) -> NodeId:
        """The first that has signed for fewest windows: it has all it needs from those before."""
        return self.seats[self._next_of_seat.index(min(self._next_of_seat))].assignment.node_id

    def keep(self, receipt: SignedReceipt, records: Sequence[TokenRecord]) -> None:
        """Raises `ProtocolViolation` for records that have no bytes."""
        said = receipt.receipt
        if self._posts_records and said.stage == len(self.seats) - 1:
            try:
                self._records[said.window] = [(record.token_id, record_bytes(record)) for record in records]
            except (struct.error, OverflowError):
                raise ProtocolViolation("a sample record with a number out of range") from None
        self._receipts.setdefault(said.window, {})[said.stage] = receipt

    def check_seat(self, stage: int, windows_of: Callable[[int], Sequence[Window]]) -> Finding | None:
        """Rule 2 for the receipts of a seat that have not been looked at, in order of windows up to the first gap.

        `windows_of`: a window of that index as the seat may have ended it, the whole one first.
        """
        seat = self.seats[stage]
        while (receipt := self.receipt(self._next_of_seat[stage], stage)) is not None:
            index = self._next_of_seat[stage]
            windows = windows_of(index)
            found = check_receipt(
                receipt,
                assignment=seat.assignment,
                order_digest=digest_of(seat.order),
                previous=self.receipt(index - 1, stage),
                window=next((each for each in windows if each.row_end == receipt.receipt.row_end), windows[0]),
            )
            if found is not None:
                return found
            self._next_of_seat[stage] += 1
        return None

    def judge(self, window: Window, *, given: bool) -> Finding | None:
        """Rules 3 and 4 and the links, for the next window, which is complete. given: its ids by the coordinator."""
        self.next_window = window.index + 1
        self._take_records(window)
        found = check_lane(
            self.of_window(window.index),
            source=(_value(self.ids, window.row_start), _value(self.ids, window.row_end)),
            sink=(_value(self.sink, max(window.row_start, self._sink_row)), self._sink_end(window)),
            row_end=window.row_end,
            given=given,
        )
        if found is not None:
            self.faults[window.index] = found
        return found

    def forget_before(self, row: int) -> None:
        """Windows before `row` will not be judged again."""
        self.ids.forget_before(row)
        self.sink.forget_before(row)

    def _take_records(self, window: Window) -> None:
        records = self._records.pop(window.index, ())
        self.sink.extend(data for _, data in records)
        if self._runs_own_ids:
            self.ids.extend(id_bytes(token_id) for token_id, _ in records)

    def _sink_end(self, window: Window) -> str:
        """Lane 0 drafts ahead; who posts records posts those of the window, and no more."""
        has_too_many = self._posts_records and self.sink.row > window.row_end
        return "" if has_too_many else _value(self.sink, window.row_end)


def _value(chain: RowChain, row: int) -> str:
    """In hex; empty, which no receipt can say, for rows that were never sent."""
    return chain.at(row).hex() if row <= chain.row else ""
