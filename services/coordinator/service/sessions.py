"""Which sessions there are: opening, cancelling, holding, adopting, watching over them.

A session belongs to the coordinator that opened it, under a lease. What lapses is adopted by whoever notices first,
in a fresh epoch, so that its former holder, should it only have slept, cannot write any more.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from services.coordinator.domain.faults import FaultKind
from services.coordinator.domain.liveness import is_stalled
from services.coordinator.domain.replica import LEASE_S, RENEW_EVERY_S, look_in_s
from services.coordinator.domain.session import NO_EPOCH, SeatKey, Session, Subject
from services.coordinator.domain.tail_line import Finished
from services.coordinator.service.interfaces import SessionsInterface
from services.coordinator.service.member import Member
from services.coordinator.service.models import Models
from services.coordinator.service.parts import Parts
from services.coordinator.service.run import Run
from services.coordinator.service.session_run import SessionRun
from shared.contracts.coordinator import CoordinatorState, OpenSession
from shared.contracts.messages import SessionPosition, SessionStop, StageRef
from shared.domain.errors import (
    ButterflyError,
    ContextLengthExceeded,
    RegistryUnavailable,
    ServerDraining,
    StaleEpoch,
)
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.plan import Partition
from shared.domain.session import SessionPhase
from shared.domain.task_state import TaskState
from shared.registry.base import HeldSessions, TaskRecord
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)

WATCH_EVERY_S = 0.25
RETRY_PLAN_EVERY_S = 1.0  # for what no event tells: the partitioner is back, a slow node has more room
ADOPTED_AT_ONCE = 32  # the rest at the next look, or by another replica
ADOPTABLE = frozenset({TaskState.COORDINATING, TaskState.COMPUTING, TaskState.AGGREGATING})
LOAD_TIMEOUT_S = 120.0  # a stage may have to be fetched first
OVERSLEPT_S = 0.25
STOPS_AT_ONCE = 16  # to one node: a worker cannot make the coordinator post without bounds


class Sessions(SessionsInterface):
    def __init__(
        self,
        parts: Parts,
        *,
        models: Models,
        tasks: BackgroundTasks,
        draining: asyncio.Event,
        phase_timeout_s: float,
        settle_s: float,
    ) -> None:
        """`settle_s`: after the start, how long workers get to register before orphans are adopted."""
        self._parts = parts
        self._models = models
        self._tasks = tasks
        self._draining = draining
        self._phase_timeout_s = phase_timeout_s
        self._runs: dict[TaskId, Run] = {}
        self._node_progress_s: dict[NodeId, float] = {}
        self._stopping: Counter[NodeId] = Counter()
        self._poked_s = parts.clock.now_s()
        self._adopts_from_s = parts.clock.now_s() + settle_s

    # --- for the scheduler

    async def open(self, wanted: OpenSession) -> None:
        if self._draining.is_set():
            raise ServerDraining("this coordinator stops", retry_after_s=1.0)
        await self._models.info(wanted.plan.model_id, root=wanted.plan.model_root)
        subject = await self._subject(await self._parts.registry.record(wanted.task_id))
        # From here to the entry in `_runs` nothing waits, so that two deliveries cannot both get through.
        known = self._runs.get(wanted.task_id)
        if known is not None and known.session.subject.attempt >= wanted.attempt and not known.session.has_ended:
            await self._open_again(known, wanted)
            return
        run = SessionRun(self._parts, subject)
        if known is not None:
            known.session.cancel()  # of an earlier attempt, or ended and about to go
        self._runs[wanted.task_id] = run
        try:
            await run.open(wanted.plan, attempt=wanted.attempt)
        except ContextLengthExceeded as error:
            await run.fail_unopened(error)
            self._drop(run)
        except BaseException:
            self._drop(run)
            raise
        else:
            self._go(run)

    def cancel(self, task_id: TaskId) -> None:
        run = self._runs.get(task_id)
        if run is not None:
            run.session.cancel()

    def state(self) -> CoordinatorState:
        num_sessions = sum(isinstance(run, SessionRun) for run in self._runs.values())
        return CoordinatorState(sessions=num_sessions, nodes=self._parts.members.counts())

    # --- for audits of finished answers

    @contextmanager
    def hosting(self, run: Run) -> Iterator[None]:
        """Messages, losses and stalls reach this run too, whose task has no session any more."""
        self._runs[run.session.task.task_id] = run
        try:
            yield
        finally:
            self._drop(run)

    # --- for messages

    def get(self, task_id: TaskId) -> Session:
        """Raises `StaleEpoch` for tasks without a session."""
        return self.run_of(task_id).session

    def run_of(self, task_id: TaskId) -> Run:
        """Raises `StaleEpoch` for tasks without a session."""
        run = self._runs.get(task_id)
        if run is None:
            raise StaleEpoch(f"task {task_id} has no session")
        return run

    def progressed(self, node_id: NodeId) -> None:
        """A node got further with any session."""
        self._node_progress_s[node_id] = self._parts.clock.now_s()

    def positions(self, member: Member, positions: Sequence[SessionPosition]) -> None:
        """How far a node says it is. What it still holds of sessions that are over, it is told to forget."""
        now_s = self._parts.clock.now_s()
        for position in positions:
            run = self._runs.get(position.task_id)
            if run is not None and run.session.epoch <= position.epoch and not run.session.has_ended:
                seat = (position.lane, position.stage)
                if run.session.position(member.node_id, position.epoch, seat, position.rows, now_s=now_s):
                    self.progressed(member.node_id)
            else:
                self.stop_stale(member, SessionStop(task_id=position.task_id, epoch=position.epoch, reason="stale"))

    def stop_stale(self, member: Member, stop: SessionStop) -> None:
        """Tell a worker to forget a session that is over. Once is enough: it is repeated while the worker goes on, so
        beyond `STOPS_AT_ONCE` it is left for later."""
        if self._stopping[member.node_id] >= STOPS_AT_ONCE:
            return
        self._stopping[member.node_id] += 1
        _ = self._tasks.start(self._stop_stale(member, stop), name=f"stop-{stop.task_id}")

    def stage_ready(self, member: Member, ref: StageRef) -> None:
        """A stage that seats may wait for is loaded."""
        for run, seat in self._awaiting(member, ref):
            run.session.progressed(now_s=self._parts.clock.now_s())
            run.session.poke()  # it may wait for what the node says of the stage, to make its orders
            _ = self._tasks.start(run.assign_again(seat), name=f"assign-{run.session.task.task_id}")

    def stage_failed(self, member: Member, ref: StageRef, code: str, reason: str) -> None:
        """A node cannot hold a stage: no session waits for it any longer, and none of those asks it again, or not for
        a while."""
        now_s = self._parts.clock.now_s()
        for run, _ in self._awaiting(member, ref):
            kind = run.session.refused(member.node_id, member.boot_id, code, now_s=now_s)
            run.session.lose(kind, reason, suspect=member.node_id, now_s=now_s)

    def link_broken(self, sender: NodeId, peer: NodeId, *, outgoing: bool, reason: str) -> bool:
        """A link between two nodes broke: every session whose ring uses it is lost there. Nobody is accused. Whether
        there was any. `peer` may stand for a link that goes through this coordinator."""
        now_s = self._parts.clock.now_s()
        relayed = self._parts.relays.beyond(peer, sender)
        if relayed is not None:
            task_id, other = relayed
            self.get(task_id).lose(FaultKind.LINK, reason, between=(sender, other), now_s=now_s)
            return True
        earlier, later = (sender, peer) if outgoing else (peer, sender)
        lost = [
            run
            for run in self._runs.values()
            if any(_are_neighbours(lane, earlier, later) for lane in run.session.lanes)
        ]
        for run in lost:
            run.session.lose(FaultKind.LINK, reason, between=(sender, peer), now_s=now_s)
        return bool(lost)

    # --- as a watcher of the membership

    def node_gone(self, node_id: NodeId, kind: FaultKind, reason: str) -> None:
        self._node_progress_s.pop(node_id, None)
        self._parts.pair_marks.forget(node_id)
        for run in list(self._runs.values()):
            session = run.session
            session.forget_rows(node_id)
            if session.seats_of(node_id):
                # Only a node that was computing may have died of it.
                was_computing = session.phase in {SessionPhase.PREFILLING, SessionPhase.DRAFTING}
                seen_as = kind if was_computing else FaultKind.GONE
                session.lose(seen_as, reason, suspect=node_id, now_s=self._parts.clock.now_s())

    def nodes_changed(self) -> None:
        for run in list(self._runs.values()):
            if run.session.phase is SessionPhase.RECOVERING:
                run.session.poke()

    # --- loops

    async def watch_once(self) -> None:
        """Leases, deadlines, stalls; to be called in a loop."""
        clock = self._parts.clock
        began_s = clock.now_s()
        await clock.sleep(WATCH_EVERY_S)
        late_s = clock.now_s() - began_s - WATCH_EVERY_S
        overslept_s = late_s if late_s > OVERSLEPT_S else 0.0
        self._parts.members.sweep(overslept_s=overslept_s)
        now_s = clock.now_s()
        for run in list(self._runs.values()):
            self._watch(run, now_s, overslept_s)
        if now_s - self._poked_s >= RETRY_PLAN_EVERY_S:
            self._poked_s = now_s
            self.nodes_changed()

    async def hold_once(self) -> None:
        """Renew the leases of the sessions here, and take over those whose holder is gone; to be called in a loop.
        Raises `RegistryUnavailable`.

        Nothing is taken over before the workers had time to register after a start (a plan made for the first of them
        would be a bad one), nor when the registry was away: then every lease has lapsed, and the holders come first.
        """
        clock = self._parts.clock
        held = self.held()
        adopts = not self._draining.is_set() and clock.now_s() >= self._adopts_from_s
        try:
            found = await self._hold(tuple(held), lease_s=LEASE_S, adopt=ADOPTED_AT_ONCE if adopts else 0)
        except RegistryUnavailable:
            self._adopts_from_s = max(self._adopts_from_s, clock.now_s() + LEASE_S)
            raise
        for task_id in found.lost:
            self._lost(task_id, held[task_id])
        for task_id in found.adopted:
            await self._adopt(task_id)
        await clock.sleep(look_in_s(found.next_lapse_s) if adopts else RENEW_EVERY_S)

    def held(self) -> Mapping[TaskId, Epoch]:
        """The sessions that are this coordinator's, as far as it knows, and their epochs."""
        running = {
            task_id: run.session.epoch
            for task_id, run in self._runs.items()
            if isinstance(run, SessionRun) and run.session.epoch != NO_EPOCH and not run.session.has_ended
        }
        return dict.fromkeys(self._parts.tail.held, NO_EPOCH) | running  # of what is held back no epoch runs

    async def give_up(self, task_ids: Collection[TaskId]) -> None:
        """This process stops: let another one take over at once. Raises `RegistryUnavailable`: then they lapse."""
        await self._hold(tuple(task_ids), lease_s=0.0, adopt=0)

    # ---

    def _watch(self, run: Run, now_s: float, overslept_s: float) -> None:
        session = run.session
        if now_s >= session.subject.deadline_at_s:
            session.expire()
            return
        session.progress_at_s += overslept_s
        if not session.is_running:
            return
        nodes_progress_s = max((self._node_progress_s.get(node_id, 0.0) for node_id in session.nodes), default=0.0)
        timeout_s = LOAD_TIMEOUT_S if session.phase is SessionPhase.LOADING else self._phase_timeout_s
        if is_stalled(
            silent_s=now_s - session.progress_at_s, nodes_silent_s=now_s - nodes_progress_s, timeout_s=timeout_s
        ):
            reason = f"no progress for {timeout_s:g} s while {session.phase}"
            last, before = run.laggard()
            between = (before, last) if last is not None and before is not None else None
            session.lose(FaultKind.STALL, reason, suspect=last, between=between, now_s=now_s)

    async def _open_again(self, known: Run, wanted: OpenSession) -> None:
        """A second delivery promises no more than the first one achieves, which may be still at it."""
        if isinstance(known, SessionRun) and known.session.epoch == NO_EPOCH:
            await known.tried.wait()
            if known.session.epoch == NO_EPOCH:
                await self.open(wanted)

    async def _hold(self, task_ids: Sequence[TaskId], *, lease_s: float, adopt: int) -> HeldSessions:
        return await self._parts.registry.hold_sessions(
            task_ids, coordinator=self._parts.boot_id, lease_s=lease_s, adopt=adopt
        )

    def _lost(self, task_id: TaskId, epoch: Epoch) -> None:
        """Another coordinator has it, or its task was ended by others."""
        run = self._runs.get(task_id)
        if run is None or run.session.epoch != epoch:
            return  # it has begun another epoch meanwhile
        if run.session.is_running or run.session.phase is SessionPhase.RECOVERING:
            log.warning("session_lost", extra={"task_id": task_id, "epoch": epoch})
            run.session.cancel()

    async def _adopt(self, task_id: TaskId) -> None:
        try:
            record = await self._parts.registry.record(task_id)
            subject = await self._subject(record)
        except ButterflyError as error:
            log.warning("not_adopted", extra={"task_id": task_id, "code": error.code})
            return
        if task_id in self._runs or self._parts.tail.holds(task_id) or record.state not in ADOPTABLE:
            return  # opened by the scheduler, or ended, meanwhile
        log.info("session_adopted", extra={"task_id": task_id, "epoch": record.epoch, "state": record.state})
        if record.state is TaskState.AGGREGATING:  # held back: nothing is left to be done but its audit
            now_s = self._parts.clock.now_s()
            self._parts.tail.hold(Finished(subject, record.epoch, nodes=frozenset(), at_s=now_s))
            return
        run = SessionRun(self._parts, subject, phase=SessionPhase.RECOVERING, epoch=record.epoch)
        self._runs[task_id] = run
        self._go(run)

    async def _subject(self, record: TaskRecord) -> Subject:
        """Raises `ModelNotFound`, `PeerUnavailable`."""
        model = await self._models.info(record.task.model_id)
        table = await self._models.table(model) if record.task.stop.strings else None
        # The registry tells its own wall clock; both machines are the operator's and keep time.
        offset_s = self._parts.clock.now_s() - self._parts.clock.wall_s()
        return Subject(
            task=record.task,
            model=model,
            table=table,
            attempt=record.attempt,
            deadline_at_s=record.deadline_s + offset_s,
            created_at_s=record.created_s + offset_s,
        )

    def _go(self, run: SessionRun) -> None:
        _ = self._tasks.start(self._run(run), name=f"session-{run.session.task.task_id}")

    async def _run(self, run: SessionRun) -> None:
        try:
            await run.run()
        finally:
            self._drop(run)

    def _drop(self, run: Run) -> None:
        task_id = run.session.task.task_id
        if self._runs.get(task_id) is run:
            del self._runs[task_id]
        self._parts.slots.release(run.session)  # what ends by being cancelled has not done so
        self.nodes_changed()  # a slot may be free for a session that waits for one

    def _awaiting(self, member: Member, ref: StageRef) -> list[tuple[Run, SeatKey]]:
        """Seats of this node that wait for this stage."""
        return [
            (run, (lane, stage))
            for run in self._runs.values()
            if run.session.is_running and run.session.plan and run.session.plan.model_root == ref.model_root
            for lane, stage in run.session.seats_of(member.node_id)
            if run.session.lanes[lane][stage].layers == ref.layers and (lane, stage) in run.session.awaited
        ]

    async def _stop_stale(self, member: Member, stop: SessionStop) -> None:
        try:
            await member.worker.stop(stop)
        except ButterflyError as error:
            log.info("stale_session_not_stopped", extra={"node_id": member.node_id, "code": error.code})
        finally:
            self._stopping[member.node_id] -= 1
            self._stopping += Counter()  # drops the zeros


def _are_neighbours(lane: Sequence[Partition], earlier: NodeId, later: NodeId) -> bool:
    """Whether the ring of this lane has a link from the one to the other."""
    nodes = [seat.node_id for seat in lane]
    return (earlier, later) in zip(nodes, [*nodes[1:], *nodes[:1]], strict=True)
