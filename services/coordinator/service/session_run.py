"""One session from its assignment to its end, through losses: acts on what `domain.session` decides."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.coordinator.domain.faults import GENERATION_FAILED, FaultKind, kind_of_refusal, verdict
from services.coordinator.domain.session import NO_EPOCH, Session, Subject
from services.coordinator.domain.session_machine import SessionEvent
from services.coordinator.domain.slots import SlotLedger
from services.coordinator.ports import Partitioner
from services.coordinator.service.assigning import assignments
from services.coordinator.service.committer import Committer
from services.coordinator.service.membership import Member, Membership
from shared.contracts.messages import SessionStart, SessionStop, WorkAssignment
from shared.domain.errors import (
    ButterflyError,
    ContextLengthExceeded,
    DeadlineExceeded,
    Fenced,
    NoCapacity,
    NoSlotSpace,
    NotFound,
    PeerUnavailable,
    RegistryUnavailable,
)
from shared.domain.ids import Attempt, Epoch, NodeId
from shared.domain.plan import PartitionPlan
from shared.domain.session import SessionPhase
from shared.domain.task_state import TaskEvent, TaskState
from shared.events.catalogue import (
    PhaseTransition,
    SessionOpened,
    SessionReassigned,
    TaskCompleted,
    TaskFailed,
    TokensCommitted,
)
from shared.events.publisher import Publisher
from shared.registry.base import Commit, Finish, TaskRegistry
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

T = TypeVar("T")

REGISTRY_RETRY_S = 0.25
SLOT_RETRY_S = 0.2
AWAY_S = 5.0  # how long a node that did not answer is not asked again for the same task
MAX_ERROR_CHARACTERS = 500
ADOPTED = "adopted"


@dataclass(frozen=True, slots=True)
class Parts:
    """What every session works with."""

    registry: TaskRegistry
    members: Membership
    partitioner: Partitioner
    committer: Committer
    slots: SlotLedger
    events: Publisher
    clock: Clock
    link_secret: bytes
    """Of this run of the coordinator: later runs make new links."""


class _Lost(Exception):
    """No error: a seat is lost, the session recovers."""


class _Over(Exception):
    """No error: the task is not ours any more, but cancelled, ended or taken over."""


class _Failed(Exception):
    """The task cannot be saved."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class SessionRun:
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

    async def open(self, plan: PartitionPlan, *, attempt: Attempt | None) -> None:
        """Take slots, then the next epoch. Raises `NoCapacity` (no epoch taken), `Fenced`, `RegistryUnavailable`,
        `ContextLengthExceeded` (the epoch is taken, the task must fail)."""
        parts, session = self._parts, self.session
        seats = plan.lanes[0].partitions
        capabilities = {member.node_id: member.capability for member in parts.members.ready()}
        parts.slots.reserve(session, plan.model_root, seats, capabilities)
        try:
            epoch, _, committed = await parts.registry.open_session(
                session.task.task_id, attempt=attempt, plan_id=plan.plan_id
            )
        except BaseException:
            parts.slots.release(session)
            raise
        finally:
            self.tried.set()
        session.seat(
            plan,
            epoch,
            committed=committed,
            context_tokens=min(capabilities[seat.node_id].context_tokens for seat in seats),
            now_s=parts.clock.now_s(),
        )
        parts.events.publish(SessionOpened(session.task.task_id, epoch, len(seats)))

    async def run(self) -> None:
        """Bring the session to its end. Cancelled, when the coordinator stops: it stays in the registry."""
        try:
            await self._to_the_end()
        except _Over:
            reason = "cancelled"
        except _Failed as failed:
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
        await self._free_seats(reason)

    async def fail_unopened(self, error: ButterflyError) -> None:
        """The epoch is taken, but nothing can run in it."""
        await self._fail(error.code, error.message)
        self.session.move(SessionEvent.ABORT)

    async def assign_again(self, stage: int) -> None:
        """The worker says that it holds the stage now: ask for the seat once more."""
        session, plan = self.session, self.session.plan
        if plan is not None and session.is_running and stage in session.awaited:
            await self._assign_seat(self._orders(plan)[stage])

    # --- the way of a session

    async def _to_the_end(self) -> None:
        session = self.session
        while True:
            try:
                if session.phase is SessionPhase.RECOVERING:
                    await self._recover()
                if session.ending is None:
                    await self._assign()
                    await self._begin()
                    self._tell_recovered()
                    await self._until(lambda: session.ending is not None)
                await self._finish()
            except _Lost:
                continue
            return

    async def _assign(self) -> None:
        session, plan = self.session, self.session.plan
        if plan is None:
            raise AssertionError("a session is assigned by its plan")
        await asyncio.gather(*(self._assign_seat(order) for order in self._orders(plan)))
        self._check()
        if session.awaited:
            session.move(SessionEvent.MUST_LOAD)
        await self._until(lambda: not session.awaited)

    def _orders(self, plan: PartitionPlan) -> tuple[WorkAssignment, ...]:
        members = [self._parts.members.find(seat.node_id) for seat in self.session.seats]
        present = [member for member in members if member is not None]
        if len(present) < len(members):
            self._lose(FaultKind.GONE, "a node left while its seat was assigned")
            raise _Lost
        return assignments(self.session, plan, present, link_secret=self._parts.link_secret)

    async def _assign_seat(self, order: WorkAssignment) -> None:
        session, seat = self.session, self.session.seats[order.stage]
        while session.epoch == order.epoch and session.is_wanted:
            member = self._parts.members.find(seat.node_id)
            if member is None:
                return  # the session has been told already
            self._parts.members.loading(member.node_id, order.stage_ref)
            try:
                is_ready = await member.worker.assign(order)
            except (NoCapacity, NoSlotSpace):
                # A session that has just ended here still holds the slot there. Not for ever: this wait shows no
                # progress.
                await self._parts.clock.sleep(SLOT_RETRY_S)
                continue
            except ButterflyError as error:
                self._parts.members.not_loading(member.node_id, order.stage_ref)
                if session.epoch == order.epoch:
                    self._refused(member, error)
            else:
                if is_ready and session.epoch == order.epoch and session.is_running:
                    session.seat_ready(member.node_id, order.epoch, order.stage, now_s=self._parts.clock.now_s())
            return

    def _refused(self, member: Member, error: ButterflyError) -> None:
        if isinstance(error, PeerUnavailable):
            # Not for ever: the node may be the one that the others need, and be back soon.
            away_s = max(AWAY_S, error.retry_after_s or 0.0)
            self.session.exclude(member.node_id, member.boot_id, until_s=self._parts.clock.now_s() + away_s)
            self._parts.members.unreachable(member.node_id)
            self._lose(FaultKind.GONE, error.message, suspect=member.node_id)
        else:
            self.session.exclude(member.node_id, member.boot_id)
            self._lose(kind_of_refusal(error.code), f"{error.code}: {error.message}", suspect=member.node_id)

    async def _begin(self) -> None:
        session = self.session
        await self._now_computing()
        self._check()
        session.move(SessionEvent.SEATS_READY)
        session.progressed(now_s=self._parts.clock.now_s())
        first = self._parts.members.find(session.seats[0].node_id)
        if first is None:
            raise AssertionError("a session whose node is gone recovers")
        try:
            await first.worker.start(SessionStart(task_id=session.task.task_id, epoch=session.epoch))
        except ButterflyError as error:
            self._refused(first, error)
        self._check()

    async def _now_computing(self) -> None:
        session = self.session
        await self._persist(
            lambda: self._parts.registry.advance(
                session.task.task_id, TaskEvent.COORDINATION_COMPLETE, epoch=session.epoch
            )
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
            self._free_seats("completed"),
            self._persist(
                lambda: self._parts.registry.finish(session.task.task_id, epoch=session.epoch, finish=finish, last=last)
            ),
        )
        if not is_ours:
            raise _Over
        session.move(SessionEvent.CLOSE)
        if rest:
            self._parts.events.publish(TokensCommitted(session.task.task_id, len(rest)))
        nodes = tuple(dict.fromkeys(seat.node_id for seat in session.seats))
        self._parts.events.publish(
            TaskCompleted(session.task.task_id, self._latency_ms(), nodes, session.task.verification)
        )

    # --- losses

    async def _recover(self) -> None:
        session = self.session
        given_up = verdict(session.faults)
        if given_up is not None:
            raise _Failed(given_up.code, given_up.message)
        await self._free_seats("reassigned")
        while True:
            self._wake.clear()  # before looking: a change while we look must not be missed
            self._check(is_recovering=True)
            record = await self._persist(lambda: self._parts.registry.record(session.task.task_id))
            if record.state not in {TaskState.COORDINATING, TaskState.COMPUTING}:
                raise _Over
            if await self._seat_again():
                return
            await self._wake.wait()

    async def _seat_again(self) -> bool:
        """Whether a new plan was found and its epoch taken."""
        session = self.session
        suspect = session.faults[-1].suspect if session.faults else None
        candidates = self._candidates()
        others = [member for member in candidates if member.node_id != suspect]
        # A plan without the suspected node is tried first, if that leaves enough nodes.
        choices = [others, candidates] if len(others) < len(candidates) else [candidates]
        for nodes in choices:
            wanted = len(session.seats) or None
            if not nodes or (nodes is not candidates and wanted and len(nodes) < wanted):
                continue
            try:
                plan = await self._parts.partitioner.plan(
                    session.task.model_id,
                    [member.capability for member in nodes],
                    num_stages=min(wanted, len(nodes)) if wanted else None,
                )
                await self._persist(lambda plan=plan: self.open(plan, attempt=None))  # type: ignore[misc]
            except ContextLengthExceeded as error:
                raise _Failed(error.code, error.message) from None
            except ButterflyError as error:
                log.info("no_new_plan", extra={"task_id": session.task.task_id, "reason": error.message})
                continue
            return True
        return False

    def _candidates(self) -> Sequence[Member]:
        """Nodes that may take a seat of this session and have as much room as it was promised."""
        session = self.session
        now_s = self._parts.clock.now_s()
        room = session.max_rows or len(session.task.prompt_ids) + 1
        return [
            member
            for member in self._parts.members.ready()
            if not session.excludes(member.node_id, member.boot_id, now_s=now_s)
            and member.capability.context_tokens >= room
        ]

    async def _free_seats(self, reason: str) -> None:
        """Tell the seats of this epoch to forget it. Also learns which of their nodes answer at all."""
        session = self.session
        stop = SessionStop(task_id=session.task.task_id, epoch=session.epoch, reason=reason)
        nodes = dict.fromkeys(seat.node_id for seat in session.seats)
        await asyncio.gather(*(self._stop_node(node_id, stop) for node_id in nodes))
        self._parts.slots.release(session)

    async def _stop_node(self, node_id: NodeId, stop: SessionStop) -> None:
        member = self._parts.members.find(node_id)
        if member is None:
            return
        try:
            await member.worker.stop(stop)
        except PeerUnavailable:
            self._parts.members.unreachable(node_id)
        except ButterflyError as error:
            log.warning("stop_refused", extra={"node_id": node_id, "code": error.code})

    def _lose(self, kind: FaultKind, reason: str, *, suspect: NodeId | None = None) -> None:
        self.session.lose(kind, reason[:MAX_ERROR_CHARACTERS], suspect=suspect, now_s=self._parts.clock.now_s())

    # --- waiting and ending

    async def _until(self, done: Callable[[], bool]) -> None:
        while True:
            self._check()
            if done():
                return
            self._wake.clear()
            await self._wake.wait()

    def _check(self, *, is_recovering: bool = False) -> None:
        session = self.session
        if session.cancelled:
            raise _Over
        if session.expired:
            lacking = "" if session.is_running else "; there were not enough nodes to go on"
            raise _Failed(
                DeadlineExceeded.code,
                f"the answer had {len(session.records)} tokens when its deadline passed{lacking}",
            )
        if session.phase is SessionPhase.RECOVERING and not is_recovering:
            raise _Lost

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """The result of a registry call, tried again while the registry is away. `_Over` when we are fenced off."""
        is_away = False
        while True:
            try:
                return await write()
            except (Fenced, NotFound):
                raise _Over from None
            except RegistryUnavailable as error:
                if not is_away:  # once per outage
                    log.warning("registry_away", extra={"task_id": self.session.task.task_id, "error": error.message})
                is_away = True
                await self._parts.clock.sleep(REGISTRY_RETRY_S)
                if self.session.cancelled or self.session.expired:
                    raise _Over from None  # the scheduler's reconciler ends it in the registry

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
