"""Keeps the chains of every seat and signs a receipt at the end of each of its windows."""

from collections.abc import Callable, Iterable

import numpy as np

from services.worker.domain.batching import DecodeCall, rows_of
from services.worker.domain.identity import Identity
from services.worker.domain.seat import Seat
from services.worker.ports import ReceiptSigner, ReportTo, Rows
from services.worker.service.runner import EngineCall, StepResult
from shared.contracts.messages import ReceiptPosted, SignedText
from shared.domain.chain import id_bytes
from shared.domain.receipt import Receipt, sign_receipt
from shared.domain.signing import Signed, digest_of


class KeySigner(ReceiptSigner):
    """Signs what it is given, with this node's key."""

    def __init__(self, identity: Identity) -> None:
        self._key = identity.key

    def sign(self, receipt: Receipt) -> Signed:
        return sign_receipt(self._key, receipt).signed


class ReceiptDesk:
    """A receipt covers rows that the engine has computed, and goes to the coordinator at once."""

    def __init__(self, *, signer: ReceiptSigner, report: ReportTo, send_drafts: Callable[[], None]) -> None:
        """`send_drafts` hurries the tokens of a window that was signed: it is checked with them."""
        self._signer = signer
        self._report = report
        self._send_drafts = send_drafts

    def note(self, call: EngineCall, result: StepResult) -> None:
        """These rows are computed. Called in their order."""
        for index, seat in enumerate(call.seats):
            if not seat.live:
                continue
            inputs = _inputs(call, index)
            if result.hidden is None:
                seat.windows.extend(inputs, records=result.records[index])
            else:
                first, hidden = _outputs(call, result.hidden, index)
                seat.windows.extend(inputs, outputs=rows_of(hidden))
                if seat.passed is not None:
                    seat.passed.extend(first, hidden)
            self._sign_due(seat)

    def seal(self, seat: Seat, window: int, row_end: int) -> None:
        """The window ends early. Raises `InvalidInput` for a row outside it."""
        seat.windows.seal(window, row_end)
        self._sign_due(seat)

    def _sign_due(self, seat: Seat) -> None:
        while (due := seat.windows.due()) is not None:
            signed = self._signer.sign(due.receipt)
            seat.windows.signed(digest_of(signed))
            self._report(
                ReceiptPosted(
                    task_id=due.receipt.task_id,
                    choice=due.receipt.choice,
                    epoch=due.receipt.epoch,
                    lane=due.receipt.lane,
                    stage=due.receipt.stage,
                    window=due.receipt.window,
                    receipt=SignedText.of(signed),
                    records=due.records,
                ),
                seat.report_to,
            )
            if seat.tail is not None and seat.drafts_tokens:
                self._send_drafts()


def _inputs(call: EngineCall, index: int) -> Iterable[bytes]:
    """The bytes of each row that seat `index` of the call has run."""
    if isinstance(call, DecodeCall):
        row = call.x[index]
        return rows_of(row[None]) if isinstance(row, np.ndarray) else (id_bytes(row),)
    return rows_of(call.x) if isinstance(call.x, np.ndarray) else map(id_bytes, call.x)


def _outputs(call: EngineCall, hidden: Rows, index: int) -> tuple[int, Rows]:
    """Where the rows begin that seat `index` of the call has run, and what became of them."""
    if isinstance(call, DecodeCall):
        return call.positions[index], hidden[index : index + 1]
    return call.first, hidden
