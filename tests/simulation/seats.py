"""The workers of one epoch: honest ones as the worker service keeps its chains, and faulty ones."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from typing import Protocol

from services.coordinator.domain.ledger import Release, Seal
from services.coordinator.domain.witness import Witness
from services.worker.domain.window_keeper import WindowKeeper
from shared.domain.chain import id_bytes
from shared.domain.ids import NodeId
from shared.domain.receipt import Assignment, Receipt, SignedReceipt, sign_receipt
from shared.domain.signing import Signed, SigningKey
from shared.domain.task import TokenRecord
from tests.simulation.attacks import Attack, Kind, fate_of
from tests.simulation.toy_model import END_ID, NUM_IDS, StageState, record_of

OTHER = "5a" * 32
OF_OUTPUT = {
    Kind.WRONG_ROW,
    Kind.SLIGHTLY_WRONG,
    Kind.POISONED_PREFIX,
    Kind.EQUIVOCATES,
    Kind.HIDES,
    Kind.WITHHOLDS,
    Kind.SIGNS_OTHER,
    Kind.SKIPPED_ROW,
}


@dataclass(frozen=True)
class Posted:
    """ReceiptPosted."""

    epoch: int
    sender: NodeId
    signed: Signed
    records: tuple[TokenRecord, ...] = ()
    is_honest: bool = True


@dataclass(frozen=True)
class Drafted:
    """DraftTokens."""

    epoch: int
    first_index: int
    records: tuple[TokenRecord, ...]


@dataclass(frozen=True)
class Committed:
    lane: int
    window: int


@dataclass(frozen=True)
class ToSeats:
    epoch: int
    what: Seal | Release | Committed


Message = Posted | Drafted | ToSeats


@dataclass
class Post:
    """Everything under way, of all epochs."""

    messages: list[Message] = field(default_factory=list)
    old_receipts: list[SignedReceipt] = field(default_factory=list)


class Inbox(Protocol):
    """Where the seat before puts its rows."""

    def append(self, row: bytes, /) -> None: ...

    def extend(self, rows: Iterable[bytes], /) -> None: ...


class Receiver(Protocol):
    @property
    def inbox(self) -> Inbox: ...


class Place(Receiver, Protocol):
    """A seat as the rest of its lane and the coordinator see it, whoever is behind it."""

    next: Receiver | None
    first: Receiver | None
    witness: Witness | None
    """Of what it sends on, if its link goes through the coordinator."""

    @property
    def order(self) -> Assignment: ...

    @property
    def decodes(self) -> bool: ...

    @property
    def can_step(self) -> bool: ...

    def step(self) -> None: ...

    def release(self, step: Release) -> None: ...

    def committed(self, window: int) -> None: ...

    def seal(self, step: Seal) -> None: ...


class Seat:
    def __init__(
        self,
        order: Assignment,
        *,
        order_digest: str,
        key: SigningKey,
        num_stages: int,
        num_committed: int,
        max_tokens: int,
        decodes: bool,
        drafts_tokens: bool,
        attack: Attack,
        post: Post,
        rng: Random,
    ) -> None:
        self.order, self.decodes = order, decodes
        self._drafts_tokens = drafts_tokens
        self.is_last = order.stage == num_stages - 1
        self.next: Receiver | None = None
        self.first: Receiver | None = None
        self.witness: Witness | None = None
        """Of what it sends on, if its link goes through the coordinator."""
        self.inbox: deque[bytes] = deque()
        self._keeper = WindowKeeper(order, order_digest=order_digest, keeps_records=not drafts_tokens)
        self._key, self._attack, self._post, self._rng = key, attack, post, rng
        self._max_tokens = max_tokens
        self._state = StageState(order.stage)
        self._row = 0
        self._first_record = max(order.first_row, order.num_prompt - 1)
        self._num_tokens = num_committed
        self._is_over = False
        self._is_withholding = False
        self._is_mute = False
        """What it makes of the row goes nowhere."""
        self._shown: list[TokenRecord] = []
        """Records of the window as it sends them, which need not be those it signs."""
        self._released: dict[int, Release] = {}
        self._next_release = order.first_window
        self._committed = order.first_window - 1
        self._done: set[tuple[Kind, int]] = set()
        self._previous: SignedReceipt | None = None

    # --- what comes in

    @property
    def can_step(self) -> bool:
        if not self.inbox:
            return False
        is_free = self.order.stage > 0 or not self.decodes or self._row < self.order.first_row
        return is_free or self._row < self._keeper.schedule.window(self._committed + 2).row_end

    def release(self, step: Release) -> None:
        self._released.setdefault(step.window, step)
        while (due := self._released.get(self._next_release)) is not None:
            self.inbox.extend(map(id_bytes, due.ids))
            self._next_release += 1

    def committed(self, window: int) -> None:
        self._committed = max(self._committed, window)

    def seal(self, step: Seal) -> None:
        self._keeper.seal(step.window, step.row_end)
        self._sign_due()
        if self._fires(Kind.OVERRUNS, step.window) and self.next is not None:
            self.next.inbox.extend(self._rng.randbytes(9) for _ in range(self._rng.randrange(1, 9)))

    # --- rows

    def step(self) -> None:
        """Run one row."""
        data = self.inbox.popleft()
        window = self._window_of(self._row)
        if self.order.stage == 0 and self._fires(Kind.OTHER_IDS, window):
            data = id_bytes((data[0] + 1) % NUM_IDS)
        self._is_mute = self.is_last and self._row < self._first_record
        signed_in = data + b"!" if self._fires(Kind.INPUT_LIE, window) else data
        is_skipped = self._fires(Kind.SKIPPED_ROW, window)
        out = self._state.repeat() if is_skipped else self._state.run(data)
        if self._fires(Kind.WRONG_ROW, window) or self._fires(Kind.POISONED_PREFIX, window):
            out = _other_row(out)
        if self._fires(Kind.SLIGHTLY_WRONG, window):
            out = out[:3] + _other_row(out[3:]) if self.is_last else out[:-1] + _other_row(out[-1:])
        signed_out = _other_row(out) if self._fires(Kind.SIGNS_OTHER, window) else out
        sent = _other_row(out) if self._sends_other(window) else out
        if self.is_last:
            self._end_row(signed_in, record_of(signed_out), record_of(sent), window)
        else:
            self._keeper.extend([signed_in], outputs=[signed_out])
            assert self.next is not None
            if self.witness is not None and self._fires(Kind.WITHHOLDS, window):
                self._is_withholding = True
            if not self._is_withholding:
                if self.witness is not None:
                    self.witness.take(self._row, [sent])
                self.next.inbox.append(sent)
        self._row += 1
        self._sign_due()

    def _sends_other(self, window: int) -> bool:
        if self.witness is None and (self._fires(Kind.HIDES, window) or self._fires(Kind.WITHHOLDS, window)):
            return True
        return self._fires(Kind.EQUIVOCATES, window)

    def _end_row(self, signed_in: bytes, signed: TokenRecord, shown: TokenRecord, window: int) -> None:
        if self._row < self._first_record:
            self._keeper.extend([signed_in])
            return
        self._keeper.extend([signed_in], records=[signed])
        self._shown.append(shown)
        if not self.decodes or self._is_over:
            return
        if self._drafts_tokens:
            self._post.messages.append(Drafted(self.order.epoch, self._num_tokens, (shown,)))
        self._num_tokens += 1
        self._is_over = shown.token_id == END_ID or self._num_tokens >= self._max_tokens
        if self._is_over:
            return
        token_id = shown.token_id
        if self._fires(Kind.RING_LIE, window):
            token_id = (token_id + 1) % NUM_IDS
        assert self.first is not None
        self.first.inbox.append(id_bytes(token_id))

    def _window_of(self, row: int) -> int:
        """The window before the first stands for the rows that are replayed."""
        if row < self.order.first_row:
            return self.order.first_window - 1
        return self._keeper.schedule.window_of(row).index

    # --- receipts

    def _sign_due(self) -> None:
        while (due := self._keeper.due()) is not None:
            window = due.receipt.window
            signed = sign_receipt(self._key, self._falsified(due.receipt))
            self._keeper.signed(signed.digest)
            start = max(due.receipt.row_start, self._first_record)
            num_records = max(due.receipt.row_end, self._first_record) - start
            records, self._shown = self._shown[:num_records], self._shown[num_records:]
            if self._drafts_tokens:
                records = []
            elif self.is_last and self._fires(Kind.EXTRA_RECORD, window):
                records.append(record_of(b"extra"))
            self._send(signed, tuple(records), window)
            self._previous = signed
            self._post.old_receipts.append(signed)

    def _send(self, signed: SignedReceipt, records: tuple[TokenRecord, ...], window: int) -> None:
        own = Posted(self.order.epoch, self.order.node_id, signed.signed, records)
        if self._fires(Kind.SILENT, window):
            return
        if self._fires(Kind.REPLAYS, window) or self._fires(Kind.REPLAYS_ONLY, window):
            old = self._rng.choice(self._post.old_receipts) if self._post.old_receipts else signed
            sender = own.sender if old.receipt.epoch == self.order.epoch else old.receipt.node_id  # a late delivery
            late = Posted(old.receipt.epoch, sender, old.signed, records, is_honest=False)
            self._post.messages.append(late)
            if self._fires(Kind.REPLAYS_ONLY, window):
                return
        if self._fires(Kind.FORGES, window) and self._post.old_receipts:
            victim = self._rng.choice(self._post.old_receipts).receipt
            body = replace(victim, out_digest=OTHER)
            forged = Signed(sign_receipt(self._key, body).signed.text, self._rng.randbytes(64))
            self._post.messages.append(Posted(self.order.epoch, victim.node_id, forged, is_honest=False))
        if self._fires(Kind.DOUBLE_SIGNS, window):
            twin = sign_receipt(self._key, replace(signed.receipt, out_digest=OTHER))
            self._post.messages.append(replace(own, signed=twin.signed))
        self._post.messages.append(own)

    def _falsified(self, receipt: Receipt) -> Receipt:
        window = receipt.window
        if self._fires(Kind.GUESSES, window):
            return replace(receipt, out_digest=OTHER)
        if self._fires(Kind.GUESSES_ALL, window):
            return replace(receipt, in_digest=OTHER, out_digest=OTHER[::-1])
        if not self._fires(Kind.BAD_FIELD, window):
            return receipt
        changes: list[dict[str, int | str]] = [
            {"model_root": OTHER},
            {"numerics_hash": OTHER},
            {"sampler_hash": OTHER},
            {"layer_end": receipt.layer_end + 1},
            {"layer_start": receipt.layer_start + 1},
            {"row_start": receipt.row_start + 1},
            {"row_end": receipt.row_end - 1},
            {"row_end": receipt.row_end + 10_000},
            {"prev_receipt": OTHER},
        ]
        if window > self.order.first_window or receipt.row_start == 0:
            changes += [{"in_start": OTHER}, {"out_start": OTHER}]
        return replace(receipt, **self._rng.choice(changes))  # type: ignore[arg-type]

    # --- the attack

    def _fires(self, kind: Kind, window: int) -> bool:
        """Once per window, and the same for all that is asked of it while a receipt is made."""
        attack, order = self._attack, self.order
        if attack.kind is not kind or not attack.is_due(order.epoch, order.lane, order.stage, order.node_id, window):
            return False
        is_replayed = window < order.first_window
        if is_replayed != (kind is Kind.POISONED_PREFIX) or (self._is_mute and kind in OF_OUTPUT):
            return False
        if kind is not Kind.REPLAYS_ONLY and (kind, window) in self._done:
            return False
        self._done.add((kind, window))
        attack.fired.add(order.epoch)
        attack.fates.add(
            fate_of(
                kind,
                is_given=window == 0 or not self.decodes,
                is_last=self.is_last,
                stage=order.stage,
                persistent=attack.persistent,
            )
        )
        return True


def connect(lane: Sequence[Place]) -> None:
    for seat, following in pairwise(lane):
        seat.next = following
    lane[-1].first = lane[0]


def _other_row(row: bytes) -> bytes:
    """The same for everybody: liars who agree."""
    return bytes([(row[0] + 1) % 256]) + row[1:]
