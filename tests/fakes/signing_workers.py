"""What the workers of a verified session do, without a model: rows are hashes, receipts are signed with real keys.

A row's hidden state at layer L is a hash of the layers below and of all ids so far, so cuts and lanes do not matter.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shared.contracts.messages import (
    Draft,
    DraftTokens,
    ReceiptPosted,
    SealWindow,
    SignedText,
    WindowCommitted,
    WindowRelease,
    WorkAssignment,
)
from shared.domain.chain import RowChain, chain_start, id_bytes, record_bytes
from shared.domain.receipt import Assignment, Receipt, read_assignment, sign_receipt
from shared.domain.signing import SigningKey, digest_of
from shared.domain.task import TokenRecord
from shared.domain.windows import Window, WindowSchedule

Distort = Callable[[Assignment, int, bytes], bytes]
"""Seat, row and the rows' bytes as computed -> as the seat sends and signs them."""
Post = Callable[[str, DraftTokens | ReceiptPosted], Awaitable[object]]


Show = Callable[[Assignment, TokenRecord], TokenRecord]
"""The record that the last stage signed -> the one it sends."""


def honest(seat: Assignment, row: int, data: bytes) -> bytes:
    return data


def true_tokens(prompt_ids: Sequence[int], count: int, *, num_layers: int = 6) -> list[int]:
    """What an honest session answers."""
    ids = list(prompt_ids)
    for _ in range(count):
        ids.append(_record(_through(_embed(ids), 0, num_layers)).token_id)
    return ids[len(prompt_ids) :]


def _row(data: bytes) -> bytes:
    """float32 [64], from 0 to 255."""
    return np.frombuffer(hashlib.blake2b(data).digest(), np.uint8).astype("<f4").tobytes()


def _embed(ids: Sequence[int]) -> bytes:
    return _row(b"".join(map(id_bytes, ids)))


def _through(row: bytes, start: int, end: int) -> bytes:
    for layer in range(start, end):
        row = _row(row + bytes([layer]))
    return row


def _record(hidden: bytes) -> TokenRecord:
    row = hashlib.blake2b(hidden, digest_size=4).digest()
    return TokenRecord(token_id=1 + row[0] % 200, logit=row[1] / 2, other_id=row[2] % 200, other_logit=row[3] / 4)


def frank(seat: Assignment, record: TokenRecord) -> TokenRecord:
    return record


@dataclass(frozen=True, slots=True)
class Conduct:
    """How seats behave; by default as they should."""

    make: Distort = honest
    """What a seat makes of a row, and signs and sends."""
    send: Distort = honest
    """What it sends on in place of that."""
    read: Distort = honest
    """What a seat says that it was sent."""
    show: Show = frank


Relayed = Callable[["SigningSeat", int, bytes], Awaitable[bool]]
"""Seat, row and its bytes, for rows that are sent to the coordinator -> whether the lane goes on."""


class SigningSeat:
    """The chains and receipts of one seat."""

    def __init__(self, order: WorkAssignment, coordinator_key: bytes, key: SigningKey) -> None:
        self.order, self.key = order, key
        self.seat = seat = read_assignment(order.order.signed(), coordinator_key)
        self.is_last = seat.layer_end == seat.num_layers
        self.below = RowChain(self._start(seat.layer_start), row=0)
        self.above = RowChain(self._start(seat.layer_end), row=0)
        if self.is_last:
            self.above = RowChain(bytes.fromhex(seat.sink_start), row=max(seat.first_row, seat.num_prompt - 1))
        self.previous = digest_of(order.order.signed())
        self.posts_records = seat.lane > 0 or not order.decodes
        self.records: list[TokenRecord] = []

    def _start(self, layer: int) -> bytes:
        seat = self.seat
        sampler = seat.sampler_hash if layer == seat.num_layers else ""
        return chain_start(seat.model_root, layer, numerics_hash=seat.numerics_hash, sampler=sampler)

    def sign(self, window: Window) -> ReceiptPosted:
        seat = self.seat
        top_start = max(window.row_start, seat.num_prompt - 1) if self.is_last else window.row_start
        receipt = Receipt(
            v=1,
            task_id=seat.task_id,
            choice=seat.choice,
            epoch=seat.epoch,
            lane=seat.lane,
            stage=seat.stage,
            window=window.index,
            layer_start=seat.layer_start,
            layer_end=seat.layer_end,
            row_start=window.row_start,
            row_end=window.row_end,
            model_root=seat.model_root,
            numerics_hash=seat.numerics_hash,
            sampler_hash=seat.sampler_hash,
            in_start=self.below.at(window.row_start).hex(),
            in_digest=self.below.at(window.row_end).hex(),
            out_start=self.above.at(top_start).hex(),
            out_digest=self.above.at(window.row_end).hex(),
            prev_receipt=self.previous,
            node_id=seat.node_id,
        )
        signed = sign_receipt(self.key, receipt)
        self.previous = signed.digest
        records, self.records = tuple(self.records), []
        return ReceiptPosted(
            task_id=seat.task_id,
            epoch=seat.epoch,
            lane=seat.lane,
            stage=seat.stage,
            window=window.index,
            receipt=SignedText.of(signed.signed),
            records=records if self.is_last and self.posts_records else (),
        )


class SigningLane:
    """One pipeline in one epoch, run as far as it may go by whoever calls `pump`."""

    def __init__(
        self,
        seats: Sequence[SigningSeat],
        *,
        conduct: Conduct,
        is_mute: Callable[[Assignment], bool],
        relayed: Relayed,
    ) -> None:
        self.seats, self._conduct, self._is_mute, self._relayed = list(seats), conduct, is_mute, relayed
        first = seats[0]
        self.lane, self._order, seat = first.seat.lane, first.order, first.seat
        self.ids = list(self._order.prefix_ids)
        self.num_prefix = len(self.ids)
        self.row = 0
        self.ended = self._is_stuck = False
        self.sealed_at: int | None = None
        self._schedule = WindowSchedule(
            seat.num_prompt, seat.first_window, seat.first_row, seat.checkpoint_interval, seat.window_checkpoints
        )
        self._first_row = seat.first_row
        self._next_window = seat.first_window
        self._committed = seat.first_window - 1
        if not self._order.decodes:
            del self.ids[self._first_row :]
        self.num_generated = 0

    def hear(self, message: WindowRelease | SealWindow | WindowCommitted) -> None:
        match message:
            case WindowRelease():
                assert message.row_start == len(self.ids)
                self.ids += message.ids
            case SealWindow():
                self.sealed_at = message.row_end
            case WindowCommitted():
                self._committed = message.window

    async def pump(self, post: Post) -> bool:
        """Whether there was anything to do."""
        before = (self.row, self._next_window)
        while True:
            await self._sign_what_is_done(post)
            if not self._may_run():
                return before != (self.row, self._next_window)
            await self._run_row(post)

    def _may_run(self) -> bool:
        if self.row >= len(self.ids) or self.ended or self._is_stuck:
            return False
        ahead = self._order.max_windows_ahead
        if ahead == 0 or self.row < self._first_row:
            return True
        return self._schedule.window_of(self.row).index - self._committed <= ahead

    async def _run_row(self, post: Post) -> None:
        data = id_bytes(self.ids[self.row])
        hidden = _embed(self.ids[: self.row + 1])
        for seat in self.seats:
            seat.below.extend([self._conduct.read(seat.seat, self.row, data)])
            hidden = _through(hidden, seat.seat.layer_start, seat.seat.layer_end)
            hidden = data = self._conduct.make(seat.seat, self.row, hidden)
            if not seat.is_last:
                seat.above.extend([data])
                hidden = data = self._conduct.send(seat.seat, self.row, data)
                if not await self._relayed(seat, self.row, data):
                    self._is_stuck = True
                    return
        last = self.seats[-1]
        first_record = max(self._first_row, last.seat.num_prompt - 1)
        self.row += 1
        if self.row - 1 < first_record:
            return
        record = _record(hidden)
        last.above.extend([record_bytes(record)])
        if last.posts_records:
            last.records.append(record)
        if self._order.decodes:
            await self._generated(record, post)

    async def _generated(self, record: TokenRecord, post: Post) -> None:
        self.ids.append(record.token_id)
        self.num_generated += 1
        self.ended = record.token_id in self._order.end_ids or self.num_generated >= self._order.max_tokens
        if self.lane == 0:
            seat = self.seats[-1].seat
            draft = Draft(
                task_id=seat.task_id,
                epoch=seat.epoch,
                first_position=len(self.ids) - 1,
                records=(self._conduct.show(seat, record),),
            )
            await post(seat.node_id, DraftTokens(drafts=(draft,)))

    async def _sign_what_is_done(self, post: Post) -> None:
        while True:
            window = self._schedule.window(self._next_window)
            if self.sealed_at is not None:
                window = window.closed_at(self.sealed_at)
            if self.row < window.row_end or window.row_start >= window.row_end:
                return
            self._next_window += 1
            for seat in self.seats:
                message = seat.sign(window)
                if not self._is_mute(seat.seat):
                    await post(seat.seat.node_id, message)
