"""One audit of a finished answer: a lane of fresh nodes computes all of it once more, in an epoch of its own."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.coordinator.domain.blame import convict
from services.coordinator.domain.drafts import check_records
from services.coordinator.domain.faults import FaultKind
from services.coordinator.domain.lane_book import Seated
from services.coordinator.domain.ledger import Accuse, Release, Seal
from services.coordinator.domain.session import SeatKey, Session, Subject
from services.coordinator.domain.session_machine import SessionEvent
from services.coordinator.domain.tail_lane import Alike, Answer, Differs, Parted, Step, TailLane
from services.coordinator.service.convicting import evict_guilty
from services.coordinator.service.parts import Lost, Over, Parts
from services.coordinator.service.run import Run
from services.coordinator.service.seats import Seats
from services.coordinator.service.telling import Telling, ToSeat
from shared.contracts.messages import ReceiptPosted
from shared.domain.errors import StaleEpoch
from shared.domain.ids import Epoch, NodeId, PlanId
from shared.domain.numerics import StageFacts
from shared.domain.plan import Lane, NodeCapability, Partition, PartitionPlan
from shared.domain.receipt import SignedReceipt
from shared.domain.session import SessionPhase
from shared.domain.tail_audit import TailAudit
from shared.domain.window_check import Finding
from shared.domain.windows import WindowSchedule

log = logging.getLogger(__name__)

AUDIT_LANE = 1
"""As in the answer's own session: a node is not to know for whom it computes."""


@dataclass(frozen=True, slots=True)
class Passed:
    """Every boundary has the committed values."""

    proof: TailAudit
    convicted: frozenset[NodeId] = frozenset()
    """By the word of a trusted node."""


@dataclass(frozen=True, slots=True)
class Refuted:
    """The lane came to another result."""

    proof: TailAudit
    differs: Differs
    seats: Sequence[Seated]
    """Of the lane."""
    convicted: frozenset[NodeId] = frozenset()
    """By the word of a trusted node."""


@dataclass(frozen=True, slots=True)
class Inconclusive:
    """It did not come to its end."""

    reason: str
    suspect: NodeId | None = None
    """Whom the next try should do without."""


Outcome = Passed | Refuted | Inconclusive


class TailRun(Run):
    def __init__(self, parts: Parts, subject: Subject, answer: Answer, *, doubt: Differs | None = None) -> None:
        """`subject.deadline_at_s`: when it has to be over; `doubt`: what an earlier audit found."""
        self._parts, self._answer, self._doubt = parts, answer, doubt
        self._wake = asyncio.Event()
        self.session = Session(
            subject,
            now_s=parts.clock.now_s(),
            on_change=self._wake.set,
            on_phase=lambda _before, _after: None,  # the task is over for everybody else
        )
        self._seats = Seats(parts, self.session)
        self._telling = Telling(parts, self.session)
        self._lane: TailLane | None = None
        self._orders: Sequence[Seated] = ()

    async def open(
        self,
        seats: Sequence[Partition],
        capabilities: Mapping[NodeId, NodeCapability],
        *,
        after: Epoch,
        plan_id: PlanId,
    ) -> None:
        """Take free slots, and the epoch that follows `after`, the task's present one.

        Raises `NoCapacity`, and what `TaskRegistry.begin_tail_audit` raises.
        """
        parts, session, model = self._parts, self.session, self.session.subject.model
        # Somebody waits for an answer that is held back, as for any session's.
        gives_way = None if session.task.hold else session.cancel
        parts.slots.reserve(session, model.root, seats, capabilities, yields=gives_way)
        try:
            epoch = await parts.registry.begin_tail_audit(session.task.task_id, epoch=after)
        except BaseException:
            parts.slots.release(session)
            raise
        session.seat(
            # Lane 0 is over: nobody sits there.
            PartitionPlan(plan_id, model.model_id, model.root, "", (Lane(0, ()), Lane(AUDIT_LANE, tuple(seats)))),
            epoch,
            committed=(),
            context_tokens=min(capabilities[seat.node_id].context_tokens for seat in seats),
            now_s=parts.clock.now_s(),
        )

    async def run(self) -> Outcome:
        """To its end; then the seats are free again."""
        session = self.session
        try:
            await self._assign()
            outcome: Outcome = await self._follow()
        except Lost:
            fault = session.faults[-1]
            outcome = Inconclusive(fault.reason, fault.suspect)
        except Over:
            outcome = Inconclusive("out of time" if session.expired else "gave way to a session")
        except Exception:
            log.exception("tail_audit_broken", extra={"task_id": session.task.task_id})
            outcome = Inconclusive("internal error of the coordinator")
        session.move(SessionEvent.ABORT)  # whatever its seats say from now on is late
        await self._seats.free("completed")
        return outcome

    async def assign_again(self, seat: SeatKey) -> None:
        await self._seats.assign_again(seat)

    def receipt(self, sender: NodeId, message: ReceiptPosted) -> None:
        session, lane = self.session, self._lane
        if lane is None or session.phase is not SessionPhase.PREFILLING:
            raise StaleEpoch(f"epoch {message.epoch} of task {message.task_id} computes nothing")
        check_records(
            message.records, n_vocab=session.subject.model.n_vocab, num_logprobs=session.task.sampler.logprobs
        )
        lane.receipt(sender, message.receipt.signed(), message.records)
        session.progressed(now_s=self._parts.clock.now_s())
        session.poke()

    def laggard(self) -> tuple[NodeId | None, NodeId | None]:
        return (self._lane.laggard, None) if self._lane else (None, None)

    # ---

    async def _assign(self) -> None:
        session, plan, sizes = self.session, self.session.plan, self._parts.windows
        if plan is None:
            raise AssertionError("an audit is opened before it runs")
        schedule = WindowSchedule(
            len(session.task.prompt_ids), 0, 0, sizes.checkpoint_interval, sizes.window_checkpoints
        )
        (_, facts) = await self._seats.learn(plan, until=self._until)
        self._check_alike(facts)
        answer = self._answer
        self._orders = self._seats.prepare_replay(plan, schedule, profile=answer.profile, row_class=answer.row_class)
        await self._seats.assign_all()
        self._check()
        if session.awaited and session.phase is SessionPhase.ASSIGNING:
            session.move(SessionEvent.MUST_LOAD)
        await self._until(lambda: not session.awaited)
        self._lane = TailLane(self._answer, self._orders, schedule=schedule)

    def _check_alike(self, facts: Sequence[StageFacts]) -> None:
        """Whether the auditors' self-tests are those of the nodes that signed: else the difference would be found in
        the rows, and look like a lie. Raises `Lost`."""
        for seat, found in zip(self.session.lanes[AUDIT_LANE], facts, strict=True):
            if self._answer.facts.get(seat.layers, found) != found:
                self._seats.lose(FaultKind.NUMERICS, f"{seat.node_id} differs in its self-test", suspect=seat.node_id)
                raise Lost

    async def _follow(self) -> Outcome:
        """Have the lane compute, window by window, and hold what it signs against the answer."""
        session, lane = self.session, self._lane
        if lane is None:
            raise AssertionError("a lane is assigned before it computes")
        self._check()
        session.move(SessionEvent.SEATS_READY)
        session.progressed(now_s=self._parts.clock.now_s())
        await self._seats.start()
        while True:
            self._wake.clear()  # before acting: a change while we act must not be missed
            self._check()
            for step in lane.steps():
                outcome = await self._act(lane, step)
                if outcome is not None:
                    return outcome
            self._check()
            await self._wake.wait()

    async def _act(self, lane: TailLane, step: Step) -> Outcome | None:
        match step:
            case Seal() | Release():
                await self._tell(self._telling.message(step))
            case Alike(is_last=True):
                return Passed(self._proof(lane), await self._judge(lane, ()))
            case Alike():
                pass  # a lane that replays hears nothing of commits
            case Differs():
                return Refuted(self._proof(lane), step, self._orders, await self._judge(lane, step.signers))
            case Parted(fault=fault):
                return Inconclusive(fault.detail, fault.receipts[-1].receipt.node_id)
            case Accuse(finding=finding):
                await self._evict([finding], first_try=(), lane=lane)
                return Inconclusive(f"an auditor was convicted by rule {finding.rule}", finding.node_id)
        return None

    async def _judge(self, lane: TailLane, signers: Sequence[SignedReceipt]) -> frozenset[NodeId]:
        """Convict whoever made other rows of equal ones than a trusted node did: of this lane, of the answer's
        `signers` or the one that an earlier audit had doubts from. Without such a node nobody is."""
        doubt = self._doubt
        first_try = (*signers, *((doubt.said, *doubt.signers) if doubt is not None else ()))
        findings = convict(first_try, [lane.receipts], quorum=0, trusted=self._parts.trusted)
        await self._evict(findings, first_try=first_try, lane=lane)
        return frozenset(found.node_id for found in findings if found.node_id is not None)

    async def _evict(self, findings: Sequence[Finding], *, first_try: Sequence[SignedReceipt], lane: TailLane) -> None:
        await evict_guilty(
            self._parts,
            self.session,
            findings,
            orders=[*self._answer.seats, *self._orders],
            ids=self._answer.ids,
            first_try=first_try,
            second_try=lane.receipts,
        )

    async def _tell(self, message: ToSeat) -> None:
        await self._telling.lane(AUDIT_LANE, [message])

    def _proof(self, lane: TailLane) -> TailAudit:
        return TailAudit(
            epoch=self.session.epoch,
            orders=tuple(seated.order for seated in self._orders),
            receipts=tuple(each.signed for each in lane.receipts),
            keys={seated.assignment.node_id: seated.public_key for seated in self._orders},
        )

    def _check(self) -> None:
        if self.session.cancelled or self.session.expired:
            raise Over
        if self.session.phase is SessionPhase.RECOVERING:
            raise Lost
