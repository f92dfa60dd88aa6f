"""The seats of one session: which nodes may take them, who is told what, and that they are free again."""

import asyncio
import logging
from collections.abc import Sequence

from services.coordinator.domain.blame import same_window_again
from services.coordinator.domain.faults import FaultKind, doubted, kind_of_refusal
from services.coordinator.domain.ledger import Ledger
from services.coordinator.domain.resuming import resume
from services.coordinator.domain.session import SeatKey, Session
from services.coordinator.service.assigning import Assigning, SeatOrder
from services.coordinator.service.membership import Member
from services.coordinator.service.parts import Lost, Parts, persist
from services.coordinator.service.verifying import FirstTry, Verifying
from shared.contracts.messages import SessionStart, SessionStop, WorkAssignment
from shared.domain.errors import ButterflyError, NoCapacity, NoSlotSpace, PeerUnavailable, ResultExpired
from shared.domain.ids import NodeId
from shared.domain.plan import PartitionPlan, Seating
from shared.domain.task import Verification
from shared.domain.windows import WindowSchedule
from shared.registry.receipts import ReceiptStore

log = logging.getLogger(__name__)

SLOT_RETRY_S = 0.2
AWAY_S = 5.0  # how long a node that did not answer is not asked again for the same task
MAX_ERROR_CHARACTERS = 500


class Seats:
    def __init__(self, parts: Parts, session: Session) -> None:
        self._parts, self._session = parts, session
        self._orders: tuple[tuple[SeatOrder, ...], ...] = ()

    # --- choosing

    def choices(self) -> tuple[Sequence[Member], ...]:
        """Sets of nodes to plan over, best first: without those under doubt, if that leaves enough; then with them."""
        session = self._session
        candidates = self._candidates()
        suspect = doubted(session.faults)
        others = [member for member in candidates if member.node_id != suspect]
        if not candidates:
            return ()
        if not others or len(others) == len(candidates) or len(others) < len(session.seats):
            return (candidates,)
        return others, candidates

    def stage_counts(self, nodes: Sequence[Member]) -> Sequence[int | None]:
        """Numbers of stages to ask for, best first. Fewer stages have fewer neighbours to keep apart."""
        if not self._session.seats:
            return (None,)
        most = min(len(self._session.seats), len(nodes))
        return range(most, 0, -1) if self._session.apart else (most,)

    def wanted(self, *, with_referees: bool, nodes: Sequence[Member]) -> Seating:
        """What the next plan of this session has to keep. With referees the seats in dispute stay as they are, if their
        nodes are there, so that every node is asked the same again."""
        session, task = self._session, self._session.task
        is_audit = task.verification is Verification.AUDIT and task.max_byzantine > 0
        present = {member.node_id for member in nodes}
        stays = with_referees and not session.apart and present.issuperset(session.nodes)
        mode = task.verification
        if with_referees and is_audit and task.max_byzantine > 1:
            mode = Verification.QUORUM  # one referee is not enough: as many lanes as make the honest ones f + 1
        return Seating(
            verification=mode,
            max_byzantine=task.max_byzantine if session.is_verified else 0,
            with_referee=with_referees and is_audit and mode is Verification.AUDIT,
            is_recovery=True,
            apart=tuple(sorted(session.apart)),
            keep=session.plan.lanes[: session.num_lanes] if stays and session.plan else (),
        )

    def _candidates(self) -> Sequence[Member]:
        """Nodes that may take a seat of this session and have as much room as it was promised."""
        session = self._session
        now_s = self._parts.clock.now_s()
        room = session.max_rows or len(session.task.prompt_ids) + 1
        return [
            member
            for member in self._parts.members.ready()
            if not session.excludes(member.node_id, member.boot_id, now_s=now_s)
            and member.capability.context_tokens >= room
        ]

    # --- assigning

    async def prepare(self, plan: PartitionPlan, *, first_try: FirstTry | None) -> Verifying:
        """Make the orders of this epoch. `first_try`: the dispute that this epoch decides. Raises `Lost`, `Over`."""
        parts, session = self._parts, self._session
        schedule = await self._schedule(parts.receipts)
        if first_try is not None:
            schedule = same_window_again(schedule, first_try.window)
        decodes = session.task.verification is Verification.QUORUM and first_try is None
        members = [[self._member(seat.node_id) for seat in lane] for lane in session.lanes]
        assigning = Assigning(
            session,
            plan,
            schedule=schedule,
            decoding=() if first_try else tuple(range(len(session.lanes))) if decodes else (0,),
            max_windows_ahead=parts.windows.max_windows_ahead if session.is_verified else 0,
            key=parts.key,
            link_secret=parts.link_secret,
        )
        self._orders = tuple(
            assigning.lane(lane, seated, [member.public_key for member in seated])
            for lane, seated in enumerate(members)
        )
        task = session.task
        ledger = Ledger(
            schedule=schedule,
            lanes=[[order.seated for order in lane] for lane in self._orders],
            quorum=session.quorum,
            decodes=decodes,
            prompt_ids=task.prompt_ids,
            committed=tuple(session.records),
            sink_start=assigning.sink_start(members[0][-1].capability.numerics_class),
            replay=first_try.ids if first_try else (),
        )
        return Verifying(
            parts,
            session,
            ledger=ledger,
            orders=self._orders,
            numerics_class=members[0][0].capability.numerics_class,
            first_try=first_try,
        )

    async def _schedule(self, receipts: ReceiptStore) -> WindowSchedule:
        session = self._session
        num_committed, last_window = session.num_committed, None
        if num_committed > 0:
            try:
                entries = await persist(self._parts, session, lambda: receipts.entries(session.task.task_id))
            except ResultExpired:
                entries = ()
            # One that was kept but never committed is done again under its number.
            windows = [entry.window for entry in entries if entry.num_tokens <= num_committed]
            last_window = max(windows, default=None)
        return resume(
            self._parts.windows,
            num_prompt=len(session.task.prompt_ids),
            num_committed=num_committed,
            last_window=last_window,
        )

    def _member(self, node_id: NodeId) -> Member:
        member = self._parts.members.find(node_id)
        if member is None:
            self.lose(FaultKind.GONE, "a node left while its seat was assigned")
            raise Lost
        return member

    async def assign_all(self) -> None:
        """Returns when every seat was asked; those that have to load first stay awaited."""
        await asyncio.gather(*(self._assign(order.assignment) for lane in self._orders for order in lane))

    async def assign_again(self, seat: SeatKey) -> None:
        """The worker says that it holds the stage now: ask for the seat once more."""
        lane, stage = seat
        if self._session.is_running and seat in self._session.awaited and self._orders:
            await self._assign(self._orders[lane][stage].assignment)

    async def _assign(self, order: WorkAssignment) -> None:
        parts, session = self._parts, self._session
        node_id = session.lanes[order.lane][order.stage].node_id
        while session.epoch == order.epoch and session.is_wanted:
            member = parts.members.find(node_id)
            if member is None:
                return  # the session has been told already
            parts.members.loading(member.node_id, order.stage_ref)
            try:
                is_ready = await member.worker.assign(order)
            except (NoCapacity, NoSlotSpace):
                # A session that has just ended here still holds the slot there. Not for ever: this wait shows no
                # progress.
                await parts.clock.sleep(SLOT_RETRY_S)
                continue
            except ButterflyError as error:
                parts.members.not_loading(member.node_id, order.stage_ref)
                if session.epoch == order.epoch:
                    self._refused(member, error)
            else:
                if is_ready and session.epoch == order.epoch and session.is_running:
                    session.seat_ready(
                        member.node_id, order.epoch, order.stage, lane=order.lane, now_s=parts.clock.now_s()
                    )
            return

    async def start(self) -> None:
        """Every seat is ready: have stage 0 of each lane begin."""
        await asyncio.gather(*(self._start(lane) for lane in range(len(self._session.lanes))))

    async def _start(self, lane: int) -> None:
        session = self._session
        first = self._parts.members.find(session.lanes[lane][0].node_id)
        if first is None:
            return  # the session has been told already
        epoch = session.epoch
        try:
            await first.worker.start(SessionStart(task_id=session.task.task_id, epoch=epoch, lane=lane))
        except ButterflyError as error:
            if session.epoch == epoch:
                self._refused(first, error)

    def _refused(self, member: Member, error: ButterflyError) -> None:
        if isinstance(error, PeerUnavailable):
            # Not for ever: the node may be the one that the others need, and be back soon.
            away_s = max(AWAY_S, error.retry_after_s or 0.0)
            self._session.exclude(member.node_id, member.boot_id, until_s=self._parts.clock.now_s() + away_s)
            self._parts.members.unreachable(member.node_id)
            self.lose(FaultKind.GONE, error.message, suspect=member.node_id)
        else:
            self._session.exclude(member.node_id, member.boot_id)
            self.lose(kind_of_refusal(error.code), f"{error.code}: {error.message}", suspect=member.node_id)

    def lose(self, kind: FaultKind, reason: str, *, suspect: NodeId | None = None) -> None:
        self._session.lose(kind, reason[:MAX_ERROR_CHARACTERS], suspect=suspect, now_s=self._parts.clock.now_s())

    # --- freeing

    async def free(self, reason: str) -> None:
        """Tell the seats of this epoch to forget it. Also learns which of their nodes answer at all."""
        session = self._session
        stop = SessionStop(task_id=session.task.task_id, epoch=session.epoch, reason=reason)
        await asyncio.gather(*(self._stop_node(node_id, stop) for node_id in session.nodes))
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
