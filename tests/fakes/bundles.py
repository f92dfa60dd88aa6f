"""Answers with honest receipts, over an engine that is only a hash: what the offline check must accept."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shared.domain.bundle import Bundle
from shared.domain.chain import RowChain, chain_start, class_hash, id_bytes, record_chain, sampler_hash
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.numerics import ANY_ROWS, Profile
from shared.domain.receipt import Assignment, Receipt, SignedReceipt, sign_assignment, sign_receipt
from shared.domain.signing import Signed, SigningKey, digest_of
from shared.domain.tail_audit import TailAudit
from shared.domain.task import FinishReason, SamplerParams, TokenRecord, Verification
from shared.domain.window_entry import WindowEntry, make_entry
from shared.domain.windows import Window, WindowSchedule
from tests.fakes.identities import COORDINATOR_KEY, KEYS
from tests.fakes.tasks import MODEL, make_token

NUMERICS = "hash-engine"
MODEL_ROOT = hashlib.sha256(b"model").hexdigest()
CUTS = (0, 2, 4, 6)
CHECKPOINT = 2
TASK_ID = TaskId("0199f2aa-0000-7000-8000-0000000000aa")


@dataclass(frozen=True)
class HonestRun:
    """A session whose every node is honest. `epochs`: windows that each epoch committed, in order."""

    prompt_ids: tuple[int, ...] = (5, 6, 7)
    token_ids: tuple[int, ...] = tuple(range(100, 116))
    mode: Verification = Verification.AUDIT
    f: int = 1
    epochs: tuple[int, ...] = (4,)
    sampler: SamplerParams = field(default_factory=SamplerParams)
    task_id: TaskId = TASK_ID
    coordinator: SigningKey = COORDINATOR_KEY
    model_root: str = MODEL_ROOT
    numerics: str = NUMERICS
    cuts: tuple[int, ...] = CUTS
    profile: Profile = Profile.EXACT
    row_class: int = ANY_ROWS
    lanes_late: tuple[tuple[int, int], ...] = ()
    """(window, lane): receipts that came after the commit."""

    @property
    def num_lanes(self) -> int:
        return {Verification.NONE: 1, Verification.AUDIT: self.f + 1, Verification.QUORUM: 2 * self.f + 1}[self.mode]

    def node(self, lane: int, stage: int) -> SigningKey:
        """By rotation: stage s of lane 1 is held by the node before that of lane 0."""
        return list(KEYS.values())[(stage - lane) % max(3, self.num_lanes)]

    def bundle(self, *, num_tokens: int | None = None, complete: bool = True) -> Bundle:
        """`num_tokens`: of the answer, when a stop string ended it inside its last window."""
        entries = self.entries()
        length = entries[-1].num_tokens if num_tokens is None else num_tokens
        return Bundle(
            task_id=self.task_id,
            choice=0,
            model_id=MODEL,
            profile=self.profile,
            mode=self.mode,
            f=self.f,
            complete=complete,
            finish_reason=FinishReason.STOP if complete else None,
            sampler=self.sampler,
            prompt_ids=self.prompt_ids,
            answer_ids=self.token_ids[:length],
            entries=entries,
        )

    def entries(self) -> tuple[WindowEntry, ...]:
        found: list[WindowEntry] = []
        for number, num_windows in enumerate(self.epochs, start=1):
            found += self._epoch(Epoch(number), num_windows, begins_at=found[-1].row_end if found else 0)
        return tuple(found)

    def tail(self, *, lane: int = 2) -> TailAudit:
        """All of it once more, by the nodes that would hold `lane`."""
        epoch = Epoch(len(self.epochs) + 1)
        schedule = WindowSchedule(len(self.prompt_ids), 0, 0, CHECKPOINT, 2)
        stages = range(len(self.cuts) - 1)
        orders = [sign_assignment(self.coordinator, self._assignment(epoch, lane, stage, schedule)) for stage in stages]
        before = [digest_of(order) for order in orders]
        receipts: list[SignedReceipt] = []
        last_row = self.entries()[-1].row_end
        for index in range(schedule.window_of(last_row - 1).index + 1):
            window = schedule.window(index).closed_at(last_row)
            receipts += (self._receipt(epoch, lane, stage, window, before[stage]) for stage in stages)
            before = [each.digest for each in receipts[-len(stages) :]]
        return TailAudit(
            epoch=epoch,
            orders=tuple(orders),
            receipts=tuple(each.signed for each in receipts),
            keys={node_id: key.public_key for node_id, key in KEYS.items()},
        )

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt_ids + self.token_ids

    @property
    def records(self) -> tuple[TokenRecord, ...]:
        return tuple(map(make_token, self.token_ids))

    def _epoch(self, epoch: Epoch, num_windows: int, *, begins_at: int) -> list[WindowEntry]:
        first = sum(self.epochs[: epoch - 1])
        schedule = WindowSchedule(len(self.prompt_ids), first, begins_at, CHECKPOINT, 2)
        orders = {
            (lane, stage): sign_assignment(self.coordinator, self._assignment(epoch, lane, stage, schedule))
            for lane in range(self.num_lanes)
            for stage in range(len(self.cuts) - 1)
        }
        before = {seat: digest_of(order) for seat, order in orders.items()}
        entries = []
        last_row = len(self.ids) - 1
        for index in range(first, first + num_windows):
            window = schedule.window(index).closed_at(last_row)
            receipts = [
                self._receipt(epoch, lane, stage, window, before[lane, stage]) for lane, stage in sorted(orders)
            ]
            before = {(each.receipt.lane, each.receipt.stage): each.digest for each in receipts}
            arrived = [each for each in receipts if (index, each.receipt.lane) not in self.lanes_late]
            entries.append(self._entry(epoch, window, tuple(orders.values()) if index == first else (), arrived))
        return entries

    def _entry(
        self, epoch: Epoch, window: Window, orders: Sequence[Signed], receipts: Sequence[SignedReceipt]
    ) -> WindowEntry:
        start, end = (max(0, row + 1 - len(self.prompt_ids)) for row in (window.row_start, window.row_end))
        return make_entry(
            self.coordinator,
            task_id=self.task_id,
            choice=0,
            epoch=epoch,
            window=window,
            mode=self.mode,
            f=self.f,
            numerics_class=self.numerics,
            orders=orders,
            facts=(),
            receipts=receipts,
            keys={node_id: key.public_key for node_id, key in KEYS.items()},
            prompt_ids=self.prompt_ids,
            committed=self.records[:start],
            records=self.records[start:end],
        )

    def sign_entry(self, entry: WindowEntry, receipts: Sequence[SignedReceipt]) -> WindowEntry:
        """The coordinator commits the rows of `entry` with other receipts."""
        window = Window(entry.window, entry.row_start, entry.row_end)
        return self._entry(entry.epoch, window, entry.orders, receipts)

    def _assignment(self, epoch: Epoch, lane: int, stage: int, schedule: WindowSchedule) -> Assignment:
        num_prefix = len(self.prompt_ids) if schedule.first_index == 0 else schedule.first_row + 1
        return Assignment(
            v=1,
            task_id=self.task_id,
            choice=0,
            epoch=epoch,
            lane=lane,
            stage=stage,
            node_id=self.node(lane, stage).node_id,
            layer_start=self.cuts[stage],
            layer_end=self.cuts[stage + 1],
            num_layers=self.cuts[-1],
            model_root=self.model_root,
            numerics_hash=class_hash(self.numerics),
            sampler_hash=sampler_hash(self.sampler),
            num_prompt=len(self.prompt_ids),
            first_window=schedule.first_index,
            first_row=schedule.first_row,
            checkpoint_interval=schedule.checkpoint_interval,
            window_checkpoints=schedule.window_checkpoints,
            profile=self.profile,
            row_class=self.row_class,
            prefix_digest=self.chain(0).at(num_prefix).hex(),
            sink_start=self.chain(self.cuts[-1]).at(max(schedule.first_row, len(self.prompt_ids) - 1)).hex(),
        )

    def _receipt(self, epoch: Epoch, lane: int, stage: int, window: Window, before: str) -> SignedReceipt:
        key = self.node(lane, stage)
        values = [
            self.chain(self.cuts[stage + side]).at(max(self._first_row(self.cuts[stage + side]), row)).hex()
            for side in (0, 1)
            for row in (window.row_start, window.row_end)
        ]
        receipt = Receipt(
            v=1,
            task_id=self.task_id,
            choice=0,
            epoch=epoch,
            lane=lane,
            stage=stage,
            window=window.index,
            layer_start=self.cuts[stage],
            layer_end=self.cuts[stage + 1],
            row_start=window.row_start,
            row_end=window.row_end,
            model_root=self.model_root,
            numerics_hash=class_hash(self.numerics),
            sampler_hash=sampler_hash(self.sampler),
            in_start=values[0],
            in_digest=values[1],
            out_start=values[2],
            out_digest=values[3],
            prev_receipt=before,
            node_id=NodeId(key.node_id),
        )
        return sign_receipt(key, receipt)

    def _first_row(self, boundary: int) -> int:
        return len(self.prompt_ids) - 1 if boundary == self.cuts[-1] else 0

    def chain(self, boundary: int) -> RowChain:
        numerics = class_hash(self.numerics)
        if boundary == self.cuts[-1]:
            start = chain_start(self.model_root, boundary, numerics_hash=numerics, sampler=sampler_hash(self.sampler))
            return record_chain(start, row=len(self.prompt_ids) - 1, records=self.records)
        chain = RowChain(chain_start(self.model_root, boundary, numerics_hash=numerics), row=0)
        chain.extend(map(id_bytes, self.ids) if boundary == 0 else self.hidden_rows(boundary))
        return chain

    def hidden_rows(self, boundary: int) -> Iterable[bytes]:
        """What goes over an inner boundary, one row for each id."""
        return [hashlib.sha256(f"{boundary}:{self.ids[:row]}".encode()).digest() for row in range(1, len(self.ids) + 1)]
