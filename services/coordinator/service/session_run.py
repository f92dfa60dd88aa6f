"""One session from its assignment to its end, through losses: acts on what `domain.session` decides."""

import asyncio
import logging

from services.coordinator.domain.blame import is_settled
from services.coordinator.domain.faults import GENERATION_FAILED, verdict
from services.coordinator.domain.replica import LEASE_S
from services.coordinator.domain.session import NO_EPOCH, SeatKey, Session, Subject
from services.coordinator.domain.session_machine import SessionEvent
from services.coordinator.service.choosing import Choosing
from services.coordinator.service.parts import Failed, Lost, Over, Parts, persist
from services.coordinator.service.run import Run
from services.coordinator.service.seats import Seats
from services.coordinator.service.verifying import FirstTry, Verifying
from shared.contracts.messages import ReceiptPosted
from shared.domain.errors import (
    ButterflyError,
    ContextLengthExceeded,
    DeadlineExceeded,
    StaleEpoch,
)
from shared.domain.ids import Attempt, Epoch, NodeId
from shared.domain.plan import PartitionPlan
from shared.domain.session import SessionPhase
from shared.domain.task_state import TaskEvent, TaskState
from shared.events.catalogue import (
    GuaranteeReduced,
    PhaseTransition,
    SessionOpened,
    SessionReassigned,
    TaskCompleted,
    TaskFailed,
    TokensCommitted,
)
from shared.registry.base import Commit, Finish

log = logging.getLogger(__name__)

ADOPTED = "adopted"


class SessionRun(Run):
    def __init__(
        self,
        parts: Parts,
        subject: Subject,
        *,
        phase: SessionPhase = SessionPhase.ASSIGNING,
        epoch: Epoch = NO_EPOCH,
    ) -> None:
        """An adopted session begins RECOVERING, with the epoch that the registry has."""
        self._parts = parts
        self._wake = asyncio.Event()
        self.tried = asyncio.Event()
        """Set once an opening has come to its end, good or bad."""
        self.session = Session(
            subject,
            now_s=parts.clock.now_s(),
            phase=phase,
            epoch=epoch,
            on_change=self._wake.set,
            on_phase=self._tell_phase,
        )
        self._choosing = Choosing(parts, self.session)
        self._seats = Seats(parts, self.session)
        self._verifying: Verifying | None = None
        self._dispute: FirstTry | None = None
        """To be decided by the next epoch."""

    async def open(self, plan: PartitionPlan, *, attempt: Attempt | None) -> None:
        """Take slots, then the next epoch. Raises `NoCapacity` (no epoch taken), `Fenced`, `RegistryUnavailable`,
        `ContextLengthExceeded` (the epoch is taken, the task must fail)."""
        parts, session = self._parts, self.session
        capabilities = {member.node_id: member.capability for member in parts.members.ready()}
        is_first = attempt is not None
        guarantee = self._choosing.check(plan, capabilities, begins=is_first)
        if is_first and len(plan.lanes) > 1:
            plan = self._choosing.drawn(plan, capabilities)
        parts.slots.reserve(session, plan.model_root, plan.seats, capabilities)
        try:
            epoch, _, committed = await parts.registry.open_session(
                session.task.task_id,
                attempt=attempt,
                plan_id=plan.plan_id,
                coordinator=parts.boot_id,
                lease_s=LEASE_S,
            )
        except BaseException:
            parts.slots.release(session)
            raise
        finally:
            self.tried.set()
        self._verifying = None
        session.seat(
            plan,
            epoch,
            committed=committed,
            context_tokens=min(capabilities[seat.node_id].context_tokens for seat in plan.seats),
            now_s=parts.clock.now_s(),
        )
        parts.events.publish(SessionOpened(session.task.task_id, epoch, len(session.seats)))
        has_referee = guarantee.spare >= 2 * session.task.max_byzantine + 1 - session.num_lanes
        if session.is_verified and not (guarantee.blind and has_referee):
            parts.events.publish(GuaranteeReduced(session.task.task_id, epoch, guarantee.blind, guarantee.spare))

    async def run(self) -> None:
        """Bring the session to its end. Cancelled, when the coordinator stops: it stays in the registry."""
        try:
            await self._to_the_end()
        except Over:
            reason = "cancelled"
        except Failed as failed:
            reason = failed.code
            await self._fail(failed.code, failed.message)
        except Exception:
            log.exception("session_broken", extra={"task_id": self.session.task.task_id})
            reason = GENERATION_FAILED
            await self._fail(GENERATION_FAILED, "internal error of the coordinator")
        else:
            return
        if not self.session.has_ended:
            self.session.move(SessionEvent.ABORT)
        await self._seats.free(reason)

    async def fail_unopened(self, error: ButterflyError) -> None:
        """The epoch is taken, but nothing can run in it."""
        await self._fail(error.code, error.message)
        self.session.move(SessionEvent.ABORT)

    async def assign_again(self, seat: SeatKey) -> None:
        await self._seats.assign_again(seat)

    def receipt(self, sender: NodeId, message: ReceiptPosted) -> None:
        if self._verifying is None:
            raise StaleEpoch(f"epoch {message.epoch} of task {message.task_id} is over")
        self._verifying.receipt(sender, message)

    def laggard(self) -> tuple[NodeId | None, NodeId | None]:
        return self._verifying.laggard() if self._verifying else (None, None)

    # --- the way of a session

    async def _to_the_end(self) -> None:
        session = self.session
        while True:
            try:
                if session.phase is SessionPhase.RECOVERING:
                    await self._recover()
                if not session.is_complete:
                    await self._assign()
                    await self._begin()
                    self._tell_recovered()
                    await self._generate()
                await self._finish()
            except Lost:
                continue
            return

    async def _assign(self) -> None:
        session, plan = self.session, self.session.plan
        if plan is None:
            raise AssertionError("a session is assigned by its plan")
        facts = await self._seats.learn(plan, until=self._until)
        if session.is_verified:
            await self._seats.recall_facts()
            self._seats.check_comparable(facts)
        self._verifying = await self._seats.prepare(plan, facts, first_try=self._dispute)
        await self._seats.assign_all()
        self._check()
        if session.awaited and session.phase is SessionPhase.ASSIGNING:
            session.move(SessionEvent.MUST_LOAD)
        await self._until(lambda: not session.awaited)

    async def _begin(self) -> None:
        session = self.session
        await self._now_computing()
        self._check()
        session.move(SessionEvent.SEATS_READY)
        session.progressed(now_s=self._parts.clock.now_s())
        await self._seats.start()
        self._check()

    async def _generate(self) -> None:
        """Until the answer has ended, and all of it may be committed."""
        session, verifying = self.session, self._verifying
        if verifying is None:
            raise AssertionError("a session with seats has windows")
        while True:
            self._wake.clear()  # before acting: a change while we act must not be missed
            self._check()
            await verifying.act()
            self._dispute = verifying.open_dispute
            self._check()
            if session.is_complete:
                return
            await self._wake.wait()

    async def _now_computing(self) -> None:
        session = self.session
        await persist(
            self._parts,
            session,
            lambda: self._parts.registry.advance(
                session.task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=session.epoch
            ),
        )

    async def _finish(self) -> None:
        session, ending = self.session, self.session.ending
        if ending is None:
            raise AssertionError("only an answer that has ended is finished")
        if session.phase is SessionPhase.ASSIGNING:
            await self._now_computing()
        session.move(SessionEvent.ANSWER_ENDED)
        first_index = session.num_committed
        rest = tuple(session.records[first_index : ending.num_tokens])
        last = Commit(session.task.task_id, session.epoch, first_index, rest) if rest else None
        finish = Finish(ending.reason, ending.num_tokens)
        # Seats are freed while the end is written: the scheduler, which the end wakes, finds their slots free.
        _, is_ours = await asyncio.gather(
            self._seats.free("completed"),
            persist(
                self._parts,
                session,
                lambda: self._parts.registry.finish(
                    session.task.task_id, epoch=session.epoch, finish=finish, last=last
                ),
            ),
        )
        if not is_ours:
            raise Over
        session.move(SessionEvent.CLOSE)
        if rest:
            waited_ms = session.waited_ms(now_s=self._parts.clock.now_s())
            self._parts.events.publish(TokensCommitted(session.task.task_id, len(rest), waited_ms))
        if not session.task.hold:
            self._parts.events.publish(
                TaskCompleted(session.task.task_id, self._latency_ms(), session.nodes, session.task.verification)
            )
        self._parts.tail.finished(session)

    # --- losses

    async def _recover(self) -> None:
        session = self.session
        for fault in session.faults[-1:]:
            log.warning(
                "seats_lost",
                extra={
                    "task_id": session.task.task_id,
                    "epoch": session.epoch,
                    "kind": fault.kind,
                    "reason": fault.reason,
                    "suspect": fault.suspect,
                    "between": fault.between,
                    "lanes": [[seat.node_id for seat in lane] for lane in session.lanes],
                },
            )
        given_up = verdict(session.faults)
        if given_up is not None:
            raise Failed(given_up.code, given_up.message)
        await self._seats.free("reassigned", keep=True)
        while True:
            self._wake.clear()  # before looking: a change while we look must not be missed
            self._check(is_recovering=True)
            record = await persist(self._parts, session, lambda: self._parts.registry.record(session.task.task_id))
            if record.state not in {TaskState.COORDINATING, TaskState.COMPUTING}:
                raise Over
            self._forget_settled_dispute()
            if await self._seat_again():
                return
            await self._wake.wait()

    def _forget_settled_dispute(self) -> None:
        dispute, members = self._dispute, self._parts.members
        if dispute is None:
            return
        signers = {signed.receipt.node_id for signed in dispute.receipts}
        if is_settled(dispute.receipts, dispute.fault, {node_id for node_id in signers if members.is_evicted(node_id)}):
            self._dispute = None

    async def _seat_again(self) -> bool:
        """Whether a new plan was found and its epoch taken."""
        session = self.session
        for way in self._choosing.ways(self._dispute):
            try:
                plan = await self._choosing.plan(way, self._dispute)
                await persist(self._parts, session, lambda plan=plan: self.open(plan, attempt=None))  # type: ignore[misc]
            except ContextLengthExceeded as error:
                raise Failed(error.code, error.message) from None
            except ButterflyError as error:
                log.info("no_new_plan", extra={"task_id": session.task.task_id, "reason": error.message})
                continue
            return True
        return False

    # --- waiting and ending

    def _check(self, *, is_recovering: bool = False) -> None:
        session = self.session
        if session.cancelled:
            raise Over
        if session.expired:
            lacking = "" if session.is_running else "; there were not enough nodes to go on"
            raise Failed(
                DeadlineExceeded.code,
                f"the answer had {len(session.records)} tokens when its deadline passed{lacking}",
            )
        if session.phase is SessionPhase.RECOVERING and not is_recovering:
            raise Lost

    async def _fail(self, code: str, message: str) -> None:
        session = self.session
        log.warning("task_failed", extra={"task_id": session.task.task_id, "code": code, "error": message})
        try:
            await self._parts.registry.advance(
                session.task.task_id, TaskEvent.FAIL, epoch=session.epoch, error_code=code, error=message
            )
        except ButterflyError as error:  # ended by somebody else; or at its deadline the reconciler will
            log.info("fail_not_written", extra={"task_id": session.task.task_id, "code": error.code})
            return
        self._parts.events.publish(
            TaskFailed(session.task.task_id, code, self._latency_ms(), session.task.verification)
        )

    def _latency_ms(self) -> float:
        return (self._parts.clock.now_s() - self.session.subject.created_at_s) * 1000

    def _tell_phase(self, before: SessionPhase, after: SessionPhase) -> None:
        self._parts.events.publish(PhaseTransition(before, after, self.session.task.task_id))

    def _tell_recovered(self) -> None:
        session = self.session
        if session.lost_at_s is None:
            return
        duration_ms = (self._parts.clock.now_s() - session.lost_at_s) * 1000
        session.lost_at_s = None
        reason = session.faults[-1].kind if session.faults else ADOPTED
        self._parts.events.publish(SessionReassigned(session.task.task_id, session.epoch, reason, duration_ms))
