"""What one seat signs: the chains of the two boundaries of its stage, and the window that is due next.

Both chains cover every row from the first on, rows replayed in a later epoch included, so their values are the same in
every epoch and lane. Only the chain of sample records starts where the epoch does: from what was committed before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shared.domain.chain import RowChain, chain_start, record_bytes
from shared.domain.errors import InvalidInput
from shared.domain.receipt import Assignment, Receipt
from shared.domain.task import TokenRecord
from shared.domain.windows import Window, WindowSchedule

RECEIPT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Due:
    """A window all rows of which are computed."""

    receipt: Receipt
    records: tuple[TokenRecord, ...]
    """Of its rows, if they are kept."""


class Mark(NamedTuple):
    """The two chains at the end of a window."""

    below: bytes
    above: bytes


class WindowKeeper:
    def __init__(
        self, order: Assignment, *, order_digest: str, keeps_records: bool = False, kept: Mark | None = None
    ) -> None:
        """`order`: checked. `keeps_records`: whether sample records go with the receipts. `kept`: the chains before the
        order's first row, of an earlier epoch that computed those rows; None: they are computed again, from row 0."""
        is_last = order.layer_end == order.num_layers
        self.schedule = WindowSchedule(
            num_prompt=order.num_prompt,
            first_index=order.first_window,
            first_row=order.first_row,
            checkpoint_interval=order.checkpoint_interval,
            window_checkpoints=order.window_checkpoints,
        )
        self._order = order
        below = chain_start(order.model_root, order.layer_start, numerics_hash=order.numerics_hash)
        above = chain_start(order.model_root, order.layer_end, numerics_hash=order.numerics_hash)
        start_row = order.first_row if kept else 0
        if kept:
            below, above = kept
        self._first_out = max(order.first_row, order.num_prompt - 1) if is_last else start_row
        self._in = RowChain(below, row=start_row)
        self._out = RowChain(bytes.fromhex(order.sink_start) if is_last else above, row=self._first_out)
        self._marks = {start_row: kept} if kept else {}
        self._keeps_records = keeps_records
        self._records: list[TokenRecord] = []
        """From the first row of the window on."""
        self._previous = order_digest
        self._seals: dict[int, int] = {}
        """Window -> the row at which it ends early."""
        self._window: Window | None = None
        """Not signed yet; None after a window that ended early: the last."""
        self._row_end = 0
        self._begin(self.schedule.window(order.first_window))

    def extend(
        self, inputs: Iterable[bytes], *, outputs: Iterable[bytes] = (), records: Sequence[TokenRecord] = ()
    ) -> None:
        """The next rows are computed. `inputs`: the bytes of each (ids or hidden states); `outputs`: those of each
        hidden state, or at the last stage `records`: of those rows that yield one."""
        self._in.extend(inputs)
        if records:
            outputs = map(record_bytes, records)
            if self._keeps_records:
                self._records += records
        self._out.extend(outputs)
        if self._window is not None and self._in.row <= self._window.row_start:  # replayed: committed before
            self._forget_before(self._in.row)

    def seal(self, window: int, row_end: int) -> None:
        """The window ends at `row_end` already; nothing changes if it is signed. Raises `InvalidInput` for a row
        outside it."""
        if self._window is None or window < self._window.index:
            return
        whole = self.schedule.window(window)
        if not whole.row_start < row_end <= whole.row_end:
            raise InvalidInput(
                f"window {window} has rows {whole.row_start} to {whole.row_end}, it cannot end at {row_end}"
            )
        self._seals[window] = row_end
        if window == self._window.index:
            self._row_end = row_end

    def due(self) -> Due | None:
        """The window to be signed now; the same one until `signed` is called."""
        window, row_end = self._window, self._row_end
        if window is None or self._in.row < row_end:
            return None
        order = self._order
        out_start = max(window.row_start, self._first_out)
        out_end = max(row_end, self._first_out)
        receipt = Receipt(
            v=RECEIPT_VERSION,
            task_id=order.task_id,
            choice=order.choice,
            epoch=order.epoch,
            lane=order.lane,
            stage=order.stage,
            window=window.index,
            layer_start=order.layer_start,
            layer_end=order.layer_end,
            row_start=window.row_start,
            row_end=row_end,
            model_root=order.model_root,
            numerics_hash=order.numerics_hash,
            sampler_hash=order.sampler_hash,
            in_start=self._in.at(window.row_start).hex(),
            in_digest=self._in.at(row_end).hex(),
            out_start=self._out.at(out_start).hex(),
            out_digest=self._out.at(out_end).hex(),
            prev_receipt=self._previous,
            node_id=order.node_id,
        )
        return Due(receipt, tuple(self._records[: out_end - out_start]))

    def signed(self, digest: str) -> None:
        """The due window is signed, by a text of this digest: the next one begins."""
        window = self._window
        if window is None:
            return
        self._previous = digest
        out_end = max(self._row_end, self._first_out)
        self._marks[self._row_end] = Mark(self._in.at(self._row_end), self._out.at(out_end))
        del self._records[: out_end - max(window.row_start, self._first_out)]
        self._seals.pop(window.index, None)
        if self._row_end < window.row_end:
            self._window = None
            self._forget_before(self._in.row)
        else:
            self._begin(self.schedule.window(window.index + 1))
            self._forget_before(window.row_end)

    def mark(self, row: int) -> Mark | None:
        """The chains before `row`, if a window that is signed ended there; for an epoch that begins there."""
        return self._marks.get(row)

    def _begin(self, window: Window) -> None:
        self._window = window
        self._row_end = self._seals.get(window.index, window.row_end)

    def _forget_before(self, row: int) -> None:
        self._in.forget_before(row)
        self._out.forget_before(row)
