"""The seats of one session: who is told what, and that they are free again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence

from services.coordinator.domain.blame import same_window_again
from services.coordinator.domain.faults import FaultKind
from services.coordinator.domain.kinship import first_difference
from services.coordinator.domain.lane_book import Seated
from services.coordinator.domain.ledger import Ledger
from services.coordinator.domain.resuming import resume
from services.coordinator.domain.session import SeatKey, Session
from services.coordinator.domain.session_machine import SessionEvent
from services.coordinator.domain.witness import Witness, hop_of
from services.coordinator.service.assigning import Assigning, SeatOrder, stage_ref
from services.coordinator.service.loading import load_stage
from services.coordinator.service.member import Member, stage_key
from services.coordinator.service.parts import Failed, Lost, Parts, persist
from services.coordinator.service.relays import Detour
from services.coordinator.service.verifying import FirstTry, Verifying
from shared.contracts.messages import SessionStart, SessionStop, StageRef, WorkAssignment
from shared.domain.chain import class_hash
from shared.domain.errors import (
    ButterflyError,
    CircuitOpen,
    NoCapacity,
    NoSlotSpace,
    PeerUnavailable,
    ResultExpired,
    VerificationUnavailable,
)
from shared.domain.ids import NodeId
from shared.domain.numerics import Profile, StageFacts, row_class_of, weakest
from shared.domain.plan import PartitionPlan
from shared.domain.session import SessionPhase
from shared.domain.task import Verification
from shared.domain.window_entry import WindowEntry
from shared.domain.windows import WindowSchedule

log = logging.getLogger(__name__)

SLOT_RETRY_S = 0.2
MAX_ERROR_CHARACTERS = 500


Lanes = tuple[tuple[StageFacts, ...], ...]
"""By lane, then stage."""


class Seats:
    def __init__(self, parts: Parts, session: Session) -> None:
        self._parts, self._session = parts, session
        self._orders: tuple[tuple[SeatOrder, ...], ...] = ()
        self._detour: Detour | None = None

    async def learn(self, plan: PartitionPlan, *, until: Callable[[Callable[[], bool]], Awaitable[None]]) -> Lanes:
        """What the seats' nodes say of their stages; those that do not hold theirs yet load it first. `until` waits for
        a condition. Raises `Lost`, and what `until` raises."""
        await self._load_all(plan)
        facts = self._facts(plan)
        if facts is None:
            if self._session.phase is SessionPhase.ASSIGNING:
                self._session.move(SessionEvent.MUST_LOAD)
            await until(lambda: self._facts(plan) is not None)
            facts = self._facts(plan)
        if facts is None:
            raise AssertionError("facts once known stay known")
        return facts

    async def _load_all(self, plan: PartitionPlan) -> None:
        """Have the nodes load what the session's orders depend on: those whose facts are not known yet. Returns when
        every one was asked. Raises `Lost`."""
        self._orders = ()
        stages = {(seat.node_id, seat.layers): stage_ref(plan, seat) for seat in plan.seats}
        members = [(self._member(node_id), ref) for (node_id, _), ref in stages.items()]
        await asyncio.gather(
            *(self._load(member, ref) for member, ref in members if stage_key(ref) not in member.facts)
        )

    async def _load(self, member: Member, ref: StageRef) -> None:
        epoch = self._session.epoch
        try:
            await load_stage(self._parts.members, member, ref)
        except ButterflyError as error:
            self._parts.members.not_loading(member.node_id, ref)
            if self._session.epoch == epoch:
                self._refused(member, error)

    def _facts(self, plan: PartitionPlan) -> Lanes | None:
        """What the seats' nodes say of their stages, by lane, then stage; None: some have not spoken yet."""
        known = [
            [self._member(seat.node_id).facts.get(stage_key(stage_ref(plan, seat))) for seat in lane]
            for lane in self._session.lanes
        ]
        lanes = tuple(tuple(facts for facts in lane if facts is not None) for lane in known)
        return lanes if [*map(len, lanes)] == [*map(len, known)] else None

    async def recall_facts(self) -> None:
        """What an earlier run of this coordinator knew of the stages behind the committed tokens. Raises `Over`."""
        session = self._session
        if session.num_committed > 0 and not session.facts:
            session.facts |= {layers: facts for entry in await self._committed() for layers, facts in entry.facts}

    def check_comparable(self, lanes: Lanes) -> None:
        """Whether the seats of a verified session can be compared bit for bit, and with what is committed. Raises
        `Failed`, and `Lost`: other nodes may do."""
        session = self._session
        seats = session.lanes
        stage = first_difference(lanes)
        if stage is not None:
            self.lose(FaultKind.NUMERICS, f"the nodes of stage {stage} differ in their self-tests")
            raise Lost
        for seat, facts in zip(seats[0], lanes[0], strict=True):
            if facts.profile is Profile.TOLERANT:
                raise Failed(
                    VerificationUnavailable.code,
                    f"layers {seat.layers} of {session.task.model_id} are '{facts.profile}' here: equal input may give"
                    f" other bits. Verified are '{Profile.EXACT}' and '{Profile.DECODE_EXACT}'",
                )
        for seat, facts in zip(seats[0], lanes[0], strict=True):
            if session.facts.get(seat.layers, facts) != facts:
                for lane in seats:
                    other = self._member(lane[seat.stage].node_id)
                    session.exclude(other.node_id, other.boot_id)
                self.lose(FaultKind.NUMERICS, f"what is committed was computed otherwise than {seat.node_id} does")
                raise Lost

    async def prepare(self, plan: PartitionPlan, facts: Lanes, *, first_try: FirstTry | None) -> Verifying:
        """Make the orders of this epoch. `first_try`: the dispute that this epoch decides. Raises `Lost`, `Over`."""
        parts, session = self._parts, self._session
        if session.num_committed == 0:
            session.facts.clear()
        stages = [found for lane in facts for found in lane]
        session.facts |= {seat.layers: found for seat, found in zip(session.lanes[0], facts[0], strict=True)}
        schedule = await self._schedule()
        if first_try is not None:
            schedule = same_window_again(schedule, first_try.window)
        decodes = session.task.verification is Verification.QUORUM and first_try is None
        decoding = () if first_try else tuple(range(len(session.lanes))) if decodes else (0,)
        self._detour = self._way_round(plan, first_try) if first_try is not None else None
        assigning = self._order(
            plan,
            schedule,
            decoding=decoding,
            profile=weakest(found.profile for found in stages),
            row_class=row_class_of(stages),
            goes_on=first_try is None,
        )
        numerics_class = self._member(session.lanes[0][-1].node_id).capability.numerics_class
        task = session.task
        ledger = Ledger(
            schedule=schedule,
            lanes=[[order.seated for order in lane] for lane in self._orders],
            quorum=session.quorum,
            decodes=decodes,
            prompt_ids=task.prompt_ids,
            committed=tuple(session.records),
            sink_start=assigning.sink_start(numerics_class),
            replay=first_try.ids if first_try else (),
        )
        return Verifying(
            parts,
            session,
            ledger=ledger,
            orders=self._orders,
            numerics_class=self._member(session.lanes[0][0].node_id).capability.numerics_class,
            first_try=first_try,
            witness=self._detour.witness if self._detour else None,
        )

    def _way_round(self, plan: PartitionPlan, first_try: FirstTry) -> Detour | None:
        """For the link at fault in the first try, if there is one, it can be repeated and there is room for it."""
        session = self._session
        hop = hop_of(first_try.fault, session.lanes) if first_try.fault else None
        if hop is None:
            return None
        lane = session.lanes[hop.lane]
        sender, receiver = self._member(lane[hop.stage - 1].node_id), self._member(lane[hop.stage].node_id)
        witness = Witness(
            hop,
            task_id=session.task.task_id,
            epoch=session.epoch,
            boundary=session.lanes[hop.lane][hop.stage].layers.start,
            model_root=plan.model_root,
            numerics_hash=class_hash(receiver.capability.numerics_class),
            window=first_try.window,
        )
        return self._parts.relays.open(
            witness,
            own_address=sender.joined_at,
            receiver_address=receiver.address,
            width=session.subject.model.n_embd,
        )

    def prepare_replay(
        self, plan: PartitionPlan, schedule: WindowSchedule, *, profile: Profile, row_class: int
    ) -> Sequence[Seated]:
        """Make the orders of an epoch in which no lane decodes; its seats, by lane, then stage. Raises `Lost`."""
        self._order(plan, schedule, decoding=(), profile=profile, row_class=row_class)
        return [order.seated for lane in self._orders for order in lane]

    def _order(
        self,
        plan: PartitionPlan,
        schedule: WindowSchedule,
        *,
        decoding: Collection[int],
        profile: Profile,
        row_class: int,
        goes_on: bool = False,
    ) -> Assigning:
        """`goes_on`: nodes that keep the rows of an earlier epoch need not compute them again."""
        parts, session = self._parts, self._session
        members = [[self._member(seat.node_id) for seat in lane] for lane in session.lanes]
        keeps_rows = [
            [goes_on and session.keeps_rows(seat.node_id, seat.layers) for seat in lane] for lane in session.lanes
        ]
        seats = [
            (seat, member, keeps)
            for lane in zip(session.lanes, members, keeps_rows, strict=True)
            for seat, member, keeps in zip(*lane, strict=True)
        ]
        session.count_on((seat.node_id, seat.layers) for seat, _, keeps in seats if keeps)
        assigning = Assigning(
            session,
            plan,
            schedule=schedule,
            decoding=decoding,
            max_windows_ahead=parts.windows.max_windows_ahead if session.is_verified else 0,
            profile=profile,
            row_class=row_class,
            key=parts.key,
            link_secret=parts.link_secret,
            detour=self._detour,
        )
        # A lone decoding lane waits for nobody, so that it may have all cores; whoever replays works beside it.
        everybody = [member for _, member, _ in seats]
        replaying = [member for _, member, keeps in seats if not keeps]
        self._orders = tuple(
            assigning.lane(
                lane,
                seated,
                [member.public_key for member in seated],
                keeps_rows=keeps_rows[lane],
                beside=() if decoding == (lane,) else everybody,
                replaying=replaying,
            )
            if seated
            else ()
            for lane, seated in enumerate(members)
        )
        return assigning

    async def _schedule(self) -> WindowSchedule:
        session = self._session
        committed = await self._committed() if session.num_committed > 0 else ()
        return resume(
            self._parts.windows,
            num_prompt=len(session.task.prompt_ids),
            num_committed=session.num_committed,
            last_window=max((entry.window for entry in committed), default=None),
        )

    async def _committed(self) -> Sequence[WindowEntry]:
        """Without those that were kept but never committed: they are done again under their numbers. Raises `Over`."""
        session = self._session
        try:
            entries = await persist(self._parts, session, lambda: self._parts.receipts.entries(session.task.task_id))
        except ResultExpired:
            return ()
        return [entry for entry in entries if entry.num_tokens <= session.num_committed]

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
            except ButterflyError as error:
                if _is_over_soon(error):  # and not for ever: this wait shows no progress
                    await parts.clock.sleep(SLOT_RETRY_S)
                    continue
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
        await asyncio.gather(*(self._start(lane) for lane, seats in enumerate(self._session.lanes) if seats))

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
        now_s = self._parts.clock.now_s()
        refused = self._session.refused(member.node_id, member.boot_id, error.code, now_s=now_s)
        if isinstance(error, PeerUnavailable):
            self._parts.members.unreachable(member.node_id)
        kind = FaultKind.GONE if error.code == PeerUnavailable.code else refused
        self.lose(kind, f"{error.code}: {error.message}", suspect=member.node_id)

    def lose(self, kind: FaultKind, reason: str, *, suspect: NodeId | None = None) -> None:
        self._session.lose(kind, reason[:MAX_ERROR_CHARACTERS], suspect=suspect, now_s=self._parts.clock.now_s())

    # --- freeing

    async def free(self, reason: str, *, keep: bool = False) -> None:
        """Tell the seats of this epoch to forget it, or to `keep` their rows for the next one. Also learns which of
        their nodes answer at all."""
        session = self._session
        stop = SessionStop(task_id=session.task.task_id, epoch=session.epoch, reason=reason, keep=keep)
        await asyncio.gather(*(self._stop_node(node_id, stop) for node_id in session.nodes))
        if self._detour is not None:
            self._parts.relays.close(self._detour)
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


def _is_over_soon(error: ButterflyError) -> bool:
    """A session that has just ended here still holds the slot there; or somebody else's call is finding out whether the
    node is back."""
    is_probed = isinstance(error, CircuitOpen) and (error.retry_after_s or 0.0) < SLOT_RETRY_S
    return is_probed or isinstance(error, NoCapacity | NoSlotSpace)
