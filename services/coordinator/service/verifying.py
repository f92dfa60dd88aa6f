"""The windows of one epoch of a session: takes what its seats sign, has them do what comes next, commits.

The ledger decides; here it is done. In mode `none` drafts are committed elsewhere, receipts are only kept.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from services.coordinator.domain.blame import SEVERAL_PARTNERS, UNDECIDED, convict, pair_of, undecided
from services.coordinator.domain.drafts import check_records
from services.coordinator.domain.faults import MAX_REASON, FaultKind
from services.coordinator.domain.ledger import Accuse, Commit, Dispute, Ledger, Release, Seal
from services.coordinator.domain.session import KeptRows, SeatKey, Session
from services.coordinator.domain.witness import Witness
from services.coordinator.service.assigning import SeatOrder
from services.coordinator.service.convicting import evict_guilty
from services.coordinator.service.parts import Over, Parts, persist
from services.coordinator.service.telling import Telling, ToSeat
from shared.contracts.messages import ReceiptPosted, WindowCommitted
from shared.domain.errors import ButterflyError, ProtocolViolation
from shared.domain.ids import NodeId
from shared.domain.numerics import StageFacts
from shared.domain.passage import Passage
from shared.domain.plan import LayerRange, Partition
from shared.domain.receipt import SignedReceipt
from shared.domain.session import SessionPhase
from shared.domain.signing import Signed
from shared.domain.window_check import Finding
from shared.domain.window_entry import WindowEntry, make_entry
from shared.domain.windows import Window
from shared.events.catalogue import ConsensusReached, TokensCommitted
from shared.registry import base

log = logging.getLogger(__name__)

JUDGED = frozenset({FaultKind.DISPUTE, FaultKind.CONVICTED})


@dataclass(frozen=True, slots=True)
class FirstTry:
    """A dispute that is to be decided by computing its window once more from the same ids, with referees."""

    window: Window
    receipts: tuple[SignedReceipt, ...]
    fault: Finding | None
    """Between neighbours, if that was it."""
    ids: tuple[int, ...]
    """At the window's rows."""
    stage: int | None
    """Where lanes parted, if they did."""


class Verifying:
    def __init__(
        self,
        parts: Parts,
        session: Session,
        *,
        ledger: Ledger,
        orders: Sequence[Sequence[SeatOrder]],
        numerics_class: str,
        first_try: FirstTry | None,
        witness: Witness | None,
    ) -> None:
        """`orders`: by lane, then stage; `first_try`: the dispute that this epoch is there to decide; `witness`: of the
        link that was at fault in it."""
        self._parts, self._session, self._ledger = parts, session, ledger
        self._orders = orders
        self._telling = Telling(parts, session)
        self._numerics_class = numerics_class
        self._first_try = first_try
        self._witness = witness
        self._dispute: FirstTry | None = None
        self._rounds = 2 if any(fault.kind in JUDGED for fault in session.faults[-1:]) else 1
        """Tries that the next window takes."""
        self._num_fed = len(session.records)
        self._num_tokens = len(session.records)
        self._is_ring_ended = False
        self._is_first_entry = True
        self._posted: dict[SeatKey, int] = {}
        """The latest window that each seat signed."""
        self._begun_s: dict[int, float] = {}
        """When the first receipt of a window came."""

    @property
    def open_dispute(self) -> FirstTry | None:
        """What the next epoch has to decide, with referees: a new dispute, or one that this epoch did not get to."""
        return self._dispute or self._first_try

    # --- what seats say

    def receipt(self, sender: NodeId, message: ReceiptPosted) -> None:
        """Raises `ProtocolViolation` for what no honest seat says."""
        session, now_s = self._session, self._parts.clock.now_s()
        if session.phase is SessionPhase.DRAINING:
            return  # an honest seat does not know yet
        if session.phase not in {SessionPhase.PREFILLING, SessionPhase.DRAFTING}:
            raise ProtocolViolation(f"a receipt for a session that is {session.phase}")
        check_records(
            message.records, n_vocab=session.subject.model.n_vocab, num_logprobs=session.task.sampler.logprobs
        )
        self._ledger.receipt(sender, message.receipt.signed(), message.records)
        seat = (message.lane, message.stage)
        if message.window > self._posted.get(seat, -1):
            self._posted[seat] = message.window
            self._begun_s.setdefault(message.window, now_s)
            session.progressed(now_s=now_s)
        session.poke()

    def laggard(self) -> tuple[NodeId | None, NodeId | None]:
        """Whose receipt all others wait for, as far as one can tell, and who comes before it on the ring:
        it may wait for that one. No accusation, the next plan may do without."""
        last, before = self._last_of_all()
        witness = self._witness
        if witness is not None and not witness.is_complete and last == witness.hop.receiver:
            return witness.hop.sender, None  # the coordinator has not seen its rows pass
        return last, before

    def _last_of_all(self) -> tuple[NodeId, NodeId | None]:
        lanes = self._session.lanes
        posted = [[self._posted.get((index, seat.stage), -1) for seat in lane] for index, lane in enumerate(lanes)]
        seen = [self._session.rows_seen((0, seat.stage)) for seat in lanes[0]]
        if min(posted[0]) < max(posted[0]):
            return _with_predecessor(lanes[0], posted[0])
        if min(seen) < max(seen):  # an epoch that goes on signs nothing before its first window ends
            return _with_predecessor(lanes[0], seen)
        for lane, reached in zip(lanes[1:], posted[1:], strict=True):
            if min(reached) < posted[0][0]:
                return _with_predecessor(lane, reached)
        return _with_predecessor(lanes[0], seen)  # all are equally far: stage 0 waits for a token

    # --- what is to be done

    async def act(self) -> None:
        """Do everything that can be done now. Raises `Over`."""
        self._feed()
        while steps := self._ledger.steps():
            tells: dict[int, list[ToSeat]] = {}
            commits: list[Commit] = []
            faults: list[Accuse | Dispute] = []
            for step in steps:
                match step:
                    case Seal() if not self._session.is_verified:
                        pass  # the seats are freed at once
                    case Seal() | Release():
                        tells.setdefault(step.lane, []).append(self._telling.message(step))
                    case Commit():
                        commits.append(step)
                    case Accuse() | Dispute():
                        faults.append(step)
            await asyncio.gather(
                self._commit_all(commits), *(self._telling.lane(lane, messages) for lane, messages in tells.items())
            )
            for fault in faults:
                await self._answer(fault)
            if not self._session.is_running or self._session.is_complete:
                return
            self._feed()

    def _feed(self) -> None:
        session = self._session
        fresh = session.records[self._num_fed :]
        if fresh:
            self._ledger.draft(fresh)
            self._num_fed += len(fresh)
        if session.ring_ends_at is not None and not self._is_ring_ended:
            self._is_ring_ended = True
            self._ledger.end(session.ring_ends_at)

    # --- commits

    async def _commit_all(self, commits: Iterable[Commit]) -> None:
        for commit in commits:
            entry = self._entry(commit)
            if self._session.is_verified:
                await self._commit(commit, entry)
            else:
                _ = self._parts.tasks.start(self._keep(entry), name=f"receipts-{self._session.task.task_id}")

    async def _commit(self, commit: Commit, entry: WindowEntry) -> None:
        parts, session = self._parts, self._session
        task_id, epoch = session.task.task_id, session.epoch
        await persist(parts, session, lambda: parts.receipts.append(task_id, entry))
        session.verified(commit.num_tokens)
        session.kept = KeptRows(commit.num_tokens, frozenset(map(_seat_of, commit.receipts)))
        self._tell_consensus(commit.window)
        if not session.is_complete:  # else the window is written with the end of the answer, in one step
            first_index = session.num_committed
            records = tuple(session.records[first_index : commit.num_tokens])
            if records:
                written = base.Commit(task_id, epoch, first_index, records)
                (num_committed,) = await persist(parts, session, lambda: parts.registry.commit([written]))
                if num_committed is None:
                    raise Over
                waited_ms = session.waited_ms(now_s=parts.clock.now_s())
                session.committed(epoch, num_committed)
                parts.events.publish(TokensCommitted(task_id, len(records), waited_ms))
            await self._tell_committed(commit.window)

    def _entry(self, commit: Commit) -> WindowEntry:
        session = self._session
        before = session.records[: self._num_tokens]
        records = session.records[self._num_tokens : commit.num_tokens]
        signers = {receipt.receipt.node_id for receipt in commit.receipts}
        entry = make_entry(
            self._parts.key,
            task_id=session.task.task_id,
            choice=0,
            epoch=session.epoch,
            window=commit.window,
            mode=session.task.verification,
            f=session.task.max_byzantine if session.is_verified else 0,
            numerics_class=self._numerics_class,
            orders=self._signed_orders() if self._is_first_entry else (),
            facts=self._facts() if self._is_first_entry else (),
            receipts=commit.receipts,
            keys={node_id: key for node_id, key in self._keys().items() if node_id in signers},
            prompt_ids=session.task.prompt_ids,
            committed=before,
            records=records,
        )
        self._num_tokens, self._is_first_entry = commit.num_tokens, False
        return entry

    async def _keep(self, entry: WindowEntry) -> None:
        try:
            await self._parts.receipts.append(self._session.task.task_id, entry)
        except ButterflyError as error:  # nothing hangs on it: nobody was promised a verified answer
            log.info("receipts_not_kept", extra={"task_id": self._session.task.task_id, "code": error.code})

    async def _tell_committed(self, window: Window) -> None:
        """Lanes that decode go on from there; the others run what they are given."""
        task_id, epoch = self._session.task.task_id, self._session.epoch
        await asyncio.gather(
            *(
                self._telling.lane(
                    lane, [WindowCommitted(task_id=task_id, epoch=epoch, lane=lane, window=window.index)]
                )
                for lane, orders in enumerate(self._orders)
                if orders[0].assignment.max_windows_ahead > 0
            )
        )

    def _tell_consensus(self, window: Window) -> None:
        begun_s = self._begun_s.pop(window.index, self._parts.clock.now_s())
        duration_ms = (self._parts.clock.now_s() - begun_s) * 1000
        self._parts.events.publish(ConsensusReached(self._session.task.task_id, self._rounds, duration_ms))
        self._rounds = 1

    # --- findings

    async def _answer(self, step: Accuse | Dispute) -> None:
        match step:
            case Accuse(finding):
                await self._count(finding.window, finding.stage)
                await self._convict([finding], ())
            case Dispute() if self._session.is_verified:
                await self._count(step.window.index, step.stage)
                await self._judge(step)
            case Dispute():
                log.warning("link_disputed", extra={"task_id": self._session.task.task_id})

    async def _count(self, window: int, stage: int | None) -> None:
        """Its second try is part of a dispute, whatever comes of it."""
        parts, session = self._parts, self._session
        task_id, epoch = session.task.task_id, session.epoch
        if self._first_try is None and session.is_running:
            await persist(
                parts, session, lambda: parts.registry.note_dispute(task_id, epoch=epoch, window=window, stage=stage)
            )

    async def _judge(self, dispute: Dispute) -> None:
        """Convict who is guilty by what is known; else have the window replayed with referees. No dispute is repeated a
        second time, and none about a window that is committed: then the neighbours that disagree get a mark."""
        first = self._first_try
        passage = self._witness.passage() if self._witness else None
        findings = convict(
            first.receipts if first else (),
            _by_lane(dispute.receipts),
            self._session.quorum,
            passage,
            self._parts.trusted,
        )
        if findings:
            await self._convict(findings, dispute.receipts, passage)
            return
        detail = dispute.fault.detail if dispute.fault else f"stage {dispute.stage} has two results"
        between: tuple[NodeId, NodeId] | None = None
        if first is None and not self._is_committed(dispute.window):
            self._dispute = FirstTry(dispute.window, dispute.receipts, dispute.fault, dispute.ids, dispute.stage)
        elif first is not None and dispute.fault is None and (parted := undecided(first.receipts, dispute.receipts)):
            for node_id in parted:
                await self._parts.members.set_aside(node_id, UNDECIDED)
            self._dispute = replace(first, receipts=(*first.receipts, *dispute.receipts))  # for other referees
        else:
            self._first_try = None
            for fault in (first.fault if first else None, dispute.fault):
                between = await self._mark(fault) or between
        log.warning(
            "window_disputed",
            extra={"task_id": self._session.task.task_id, "window": dispute.window.index, "detail": detail},
        )
        self._lose(FaultKind.DISPUTE, f"window {dispute.window.index}: {detail}", between=between)

    def _is_committed(self, window: Window) -> bool:
        """Lanes that run freely may part from those that agreed after these have committed."""
        return window.row_end - len(self._session.task.prompt_ids) < self._session.num_verified

    async def _mark(self, fault: Finding | None) -> tuple[NodeId, NodeId] | None:
        """Keep two neighbours apart that disagree, sender and receiver."""
        if fault is None:
            return None
        sender, receiver = pair_of(fault)
        self._session.apart.add((min(sender, receiver), max(sender, receiver)))
        for node_id in self._parts.pair_marks.add(sender, receiver):
            await self._parts.members.set_aside(node_id, SEVERAL_PARTNERS)
        return sender, receiver

    async def _convict(
        self,
        findings: Iterable[Finding],
        second_try: Sequence[SignedReceipt],
        passage: Passage | None = None,
    ) -> None:
        """Keep the proof, then send the guilty away: that also ends every other session of theirs here."""
        parts, session = self._parts, self._session
        first_try = self._first_try.receipts if self._first_try else ()
        self._first_try = None
        await evict_guilty(
            parts,
            session,
            findings,
            orders=[order.seated for lane in self._orders for order in lane],
            ids=(*session.task.prompt_ids, *(record.token_id for record in session.records)),
            first_try=first_try,
            second_try=second_try,
            passage=passage,
        )

    # ---

    def _lose(
        self,
        kind: FaultKind,
        reason: str,
        *,
        suspect: NodeId | None = None,
        between: tuple[NodeId, NodeId] | None = None,
    ) -> None:
        now_s = self._parts.clock.now_s()
        self._session.lose(kind, reason[:MAX_REASON], suspect=suspect, between=between, now_s=now_s)

    def _signed_orders(self) -> tuple[Signed, ...]:
        return tuple(order.seated.order for lane in self._orders for order in lane)

    def _facts(self) -> tuple[tuple[LayerRange, StageFacts], ...]:
        return tuple((seat.layers, self._session.facts[seat.layers]) for seat in self._session.lanes[0])

    def _keys(self) -> Mapping[NodeId, bytes]:
        return {order.seated.assignment.node_id: order.seated.public_key for lane in self._orders for order in lane}


def _seat_of(signed: SignedReceipt) -> tuple[NodeId, LayerRange]:
    receipt = signed.receipt
    return receipt.node_id, LayerRange(receipt.layer_start, receipt.layer_end)


def _with_predecessor(lane: Sequence[Partition], reached: Sequence[int]) -> tuple[NodeId, NodeId | None]:
    """The seat that is least far, and the one before it on the ring."""
    stage = reached.index(min(reached))
    return lane[stage].node_id, lane[stage - 1].node_id if len(lane) > 1 else None


def _by_lane(receipts: Iterable[SignedReceipt]) -> list[list[SignedReceipt]]:
    lanes: dict[int, list[SignedReceipt]] = {}
    for receipt in receipts:
        lanes.setdefault(receipt.receipt.lane, []).append(receipt)
    return [lanes[lane] for lane in sorted(lanes)]
