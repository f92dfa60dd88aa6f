"""Seats are assigned, started and stopped here, as the coordinator says."""

import logging
from abc import ABC, abstractmethod

from services.worker.domain.flow import chunk_credit
from services.worker.domain.row_log import RowLog, RowLogs
from services.worker.domain.seat import Feed, FlowKey, ReplayFeed, Seat, SeatKey, Tail
from services.worker.domain.window_keeper import Mark, WindowKeeper
from services.worker.ports import ReportTo
from services.worker.service.incoming_links import IncomingLinks
from services.worker.service.orders import OrderCheck
from services.worker.service.outgoing_links import OutgoingLinks
from services.worker.service.receipts import ReceiptDesk
from services.worker.service.runner import StageRunner
from services.worker.service.seating import Seating
from services.worker.service.stages import StagePool
from shared.contracts.messages import (
    Ack,
    Drain,
    LoadStage,
    SealWindow,
    SeatReady,
    SessionStart,
    SessionStop,
    StageReady,
    WindowCommitted,
    WindowRelease,
    WorkAssignment,
)
from shared.domain.errors import (
    ButterflyError,
    ContextLengthExceeded,
    InvalidInput,
    NoCapacity,
    RowsNotKept,
    ServerDraining,
    StaleEpoch,
    TaskNotFound,
    UnsupportedModel,
)
from shared.domain.ids import Epoch
from shared.domain.numerics import Profile, fits
from shared.domain.receipt import Assignment
from shared.domain.sampler import check_sampler
from shared.domain.signing import digest_of
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)


class SessionInterface(ABC):
    """Every call may arrive twice and late: an older epoch never undoes a newer one."""

    @abstractmethod
    async def load_stage(self, message: LoadStage) -> Ack:
        """Hold a stage ready, or only fetch and test it. `ready` tells whether it is; else `StageReady` follows."""

    @abstractmethod
    async def assign(self, message: WorkAssignment, report_to: str) -> Ack:
        """Take a seat in place of any older one of this task, lane and stage, and open the link to the next.

        `ready` tells whether the stage is loaded and a slot taken; else `SeatReady` follows. `report_to`: URL of the
        coordinator that says so; it hears whatever becomes of the seat. Raises `StaleEpoch` (also
        for a seat that was held and lost in this epoch), `NoCapacity` (no free slot), `RowsNotKept`,
        `ContextLengthExceeded`, `InvalidInput` (also for an order that the coordinator did not sign), `ServerDraining`.
        """

    @abstractmethod
    async def start(self, message: SessionStart) -> Ack:
        """Stage 0: begin. Raises `TaskNotFound` for a seat that is not here, `StaleEpoch`."""

    @abstractmethod
    async def stop(self, message: SessionStop) -> Ack:
        """Free the task's seats of this and older epochs, or keep their rows; none is no error."""

    @abstractmethod
    async def release(self, message: WindowRelease) -> Ack:
        """Stage 0 of an audit lane: run these rows. Raises `TaskNotFound`, `StaleEpoch`, `InvalidInput`."""

    @abstractmethod
    async def seal(self, message: SealWindow) -> Ack:
        """Sign for a window that ends early, once its rows are computed. Raises `TaskNotFound`, `InvalidInput`."""

    @abstractmethod
    async def committed(self, message: WindowCommitted) -> Ack:
        """Stage 0 may run as far ahead of this window as its assignment says. Seats that are gone are no error."""

    @abstractmethod
    async def drain(self, message: Drain) -> Ack:
        """Take no new seats; those taken go on."""


class SessionService(SessionInterface):
    def __init__(
        self,
        *,
        seating: Seating,
        stages: StagePool,
        outgoing: OutgoingLinks,
        incoming: IncomingLinks,
        orders: OrderCheck,
        receipts: ReceiptDesk,
        report: ReportTo,
        tasks: BackgroundTasks,
        row_logs: RowLogs,
        context_tokens: int,
    ) -> None:
        self._seating = seating
        self._stages = stages
        self._outgoing = outgoing
        self._incoming = incoming
        self._orders = orders
        self._receipts = receipts
        self._report = report
        self._tasks = tasks
        self._row_logs = row_logs
        self._context_tokens = context_tokens
        self._pending: dict[SeatKey, WorkAssignment] = {}
        """Seats whose stage is being loaded."""
        self.is_draining = False

    async def load_stage(self, message: LoadStage) -> Ack:
        runner = self._stages.get(message.stage_ref)
        if runner is not None:
            return Ack(ready=True, facts=runner.loaded.facts)
        _ = self._tasks.start(self._load(message), name=f"hold {message.stage_ref.layers} ready")
        return Ack(ready=False)

    async def assign(self, message: WorkAssignment, report_to: str) -> Ack:
        if self.is_draining:
            raise ServerDraining("this worker takes no new seats")
        order = self._orders.read(message)
        if not {message.start_row, message.next_row} <= {0, order.first_row}:
            raise InvalidInput(f"start_row and next_row are 0 or {order.first_row}, the first row of the order")
        key = _seat_key(message)
        known = self._seating.at(key)
        if known is not None and known.seat.epoch == message.epoch:
            return Ack(ready=True)
        self._check_epoch(key, message.epoch)
        if self._seating.was_left(key, message.epoch):
            raise StaleEpoch(f"this seat was held and lost in epoch {message.epoch}")
        self._check_size(message)
        if message.previous is not None:
            self._incoming.expect(message.previous)
        if message.next is not None:
            self._outgoing.open(message.next)
        if known is not None:
            self._seating.free(known.seat, keep=message.start_row > 0)
        runner = self._stages.get(message.stage_ref)
        if runner is not None:
            self._pending.pop(key, None)
            self._sit_down(message, order, runner, report_to)
            return Ack(ready=True)
        if self._pending.get(key) != message:
            self._pending[key] = message
            _ = self._tasks.start(
                self._load_and_sit_down(key, message, order, report_to), name=f"seat {message.task_id}"
            )
        return Ack(ready=False)

    async def start(self, message: SessionStart) -> Ack:
        runner, _, feed = self._first_seat(message)
        feed.running = True
        runner.pump()
        return Ack()

    async def release(self, message: WindowRelease) -> Ack:
        runner, seat, feed = self._first_seat(message)
        if not isinstance(feed, ReplayFeed):
            raise InvalidInput("a window of a lane that decodes needs no release")
        n_vocab = runner.loaded.n_vocab
        if n_vocab is not None and not 0 <= min(message.ids) <= max(message.ids) < n_vocab:
            raise InvalidInput(f"an id outside a vocabulary of {n_vocab}")
        feed.release(message.row_start, message.ids, max_rows=seat.max_rows)
        runner.pump()
        return Ack()

    async def seal(self, message: SealWindow) -> Ack:
        lane = self._seating.of_lane(message.task_id, message.lane, message.epoch)
        if not lane:
            raise TaskNotFound("this worker holds no seat of the lane")
        for one in lane:
            self._receipts.seal(one.seat, message.window, message.row_end)
        return Ack()

    async def committed(self, message: WindowCommitted) -> Ack:
        for one in self._seating.of_lane(message.task_id, message.lane, message.epoch):
            feed = one.seat.feed
            if feed is not None and feed.row_limit is not None:
                feed.row_limit = max(feed.row_limit, one.seat.row_limit(message.window))
                one.runner.pump()
        return Ack()

    async def stop(self, message: SessionStop) -> Ack:
        for key, pending in list(self._pending.items()):
            if key.task_id == message.task_id and pending.epoch <= message.epoch:
                del self._pending[key]
        for seated in self._seating.of_task(message.task_id, up_to=message.epoch):
            self._seating.free(seated.seat, keep=message.keep)
        if not message.keep:
            for runner in self._stages.runners:
                runner.forget(message.task_id, up_to=message.epoch)
        return Ack()

    async def drain(self, message: Drain) -> Ack:
        log.info("draining", extra={"reason": message.reason[:200]})
        self.is_draining = True
        return Ack()

    async def _load(self, message: LoadStage) -> None:
        ref, holds = message.stage_ref, message.holds
        try:
            if holds:
                runner = await self._stages.load(ref)
                ready = StageReady(stage_ref=ref, load_ms=runner.load_ms, facts=runner.loaded.facts)
            else:
                ready = StageReady(stage_ref=ref, holds=False, facts=await self._stages.prepare(ref))
        except ButterflyError as error:
            log.warning("stage_not_loaded", extra={"layers": str(ref.layers), "code": error.code, "holds": holds})
            ready = StageReady(stage_ref=ref, holds=holds, error_code=error.code, error=error.message[:500])
        self._report(ready, None)

    async def _load_and_sit_down(
        self, key: SeatKey, message: WorkAssignment, order: Assignment, report_to: str
    ) -> None:
        error: ButterflyError | None = None
        try:
            runner = await self._stages.load(message.stage_ref)
            if self._pending.get(key) is not message:
                return  # stopped or replaced meanwhile
            del self._pending[key]
            self._sit_down(message, order, runner, report_to)
        except ButterflyError as raised:
            error = raised
            if self._pending.get(key) is message:
                del self._pending[key]
        self._report(
            SeatReady(
                task_id=message.task_id,
                choice=message.choice,
                epoch=message.epoch,
                lane=message.lane,
                stage=message.stage,
                error_code=None if error is None else error.code,
                error="" if error is None else error.message[:500],
            ),
            report_to,
        )

    def _first_seat(self, message: SessionStart | WindowRelease) -> tuple[StageRunner, Seat, Feed]:
        """Raises `TaskNotFound`, `StaleEpoch`."""
        key = SeatKey(message.task_id, message.lane, 0)
        self._check_epoch(key, message.epoch)
        seated = self._seating.find(key, message.epoch)
        if seated is None or seated.seat.feed is None:
            raise TaskNotFound("this worker holds no first seat of the session")
        return seated.runner, seated.seat, seated.seat.feed

    def _sit_down(self, message: WorkAssignment, order: Assignment, runner: StageRunner, report_to: str) -> None:
        n_vocab = runner.loaded.n_vocab
        facts = runner.loaded.facts
        is_compared = message.lane > 0
        if (is_compared and facts.profile is Profile.TOLERANT) or not fits(facts, order.row_class):
            # Other calls give other bits here: honest nodes would accuse each other.
            raise UnsupportedModel(
                f"layers {message.stage_ref.layers} are {facts.profile} here, in calls of {facts.small_rows} rows; the"
                f" order is for lane {message.lane}, in calls of {order.row_class or 'any number of'} rows"
            )
        if runner.is_last and n_vocab is not None:
            check_sampler(message.sampler, n_vocab)
        slot, kept, passed = self._slot(message, runner)
        drafts_tokens = message.decodes and message.lane == 0
        seat = Seat(
            key=_seat_key(message),
            epoch=message.epoch,
            flow=FlowKey(message.plan_id, message.lane),
            max_rows=message.max_rows,
            max_waiting=chunk_credit(message.num_stages),
            threads=message.threads,
            replay_threads=message.replay_threads,
            previous=None if message.previous is None else message.previous.node_id,
            next=None if message.next is None else message.next.node_id,
            slot=slot,
            report_to=report_to,
            row_class=order.row_class,
            windows=WindowKeeper(
                order,
                order_digest=digest_of(message.order.signed()),
                keeps_records=not drafts_tokens,
                kept=kept,
            ),
            max_windows_ahead=message.max_windows_ahead,
            drafts_tokens=drafts_tokens,
            feed=_feed(message, order) if runner.is_first else None,
            tail=_tail(message) if runner.is_last else None,
            start_row=message.start_row,
            next_row=message.next_row,
            replay_stages=message.replay_stages,
            passed=passed,
            accepted=message.start_row,
            computed=message.start_row,
        )
        if seat.feed is not None and message.decodes and message.max_windows_ahead:
            seat.feed.row_limit = seat.row_limit(order.first_window - 1)
        self._seating.add(seat, runner)
        if seat.feed is not None:
            runner.feeder.add(
                seat, seat.feed, num_stages=message.num_stages, max_batches=message.decode_batches_in_flight
            )

    def _slot(self, message: WorkAssignment, runner: StageRunner) -> tuple[int, Mark | None, RowLog | None]:
        """A slot with the rows that the seat is to go on from, and the log of those it passes on. Raises `NoCapacity`,
        `RowsNotKept`."""
        if message.start_row > 0:
            for older in self._seating.of_task(message.task_id, up_to=Epoch(message.epoch - 1)):
                self._seating.free(older.seat, keep=True)
            recalls = message.stage + 1 < message.replay_stages and message.next_row == 0
            kept = runner.take_kept(message.task_id, message.start_row, recalls=recalls)
            if kept is None:
                raise RowsNotKept(f"{message.start_row} rows of layers {message.stage_ref.layers} are not here")
            return kept.slot, kept.mark, kept.passed
        runner.forget(message.task_id, up_to=message.epoch)
        slot = runner.free_slot()
        if slot is None:
            raise NoCapacity(f"all {runner.n_slots} slots of layers {message.stage_ref.layers} are taken")
        is_logged = message.keeps_passed and not runner.is_last
        return slot, None, RowLog(self._row_logs, max_rows=message.max_rows) if is_logged else None

    def _check_epoch(self, key: SeatKey, epoch: Epoch) -> None:
        known = self._seating.at(key)
        newest = max(
            known.seat.epoch if known is not None else 0, self._pending[key].epoch if key in self._pending else 0
        )
        if epoch < newest:
            raise StaleEpoch(f"epoch {epoch} of a session that has reached {newest}")

    def _check_size(self, message: WorkAssignment) -> None:
        """What would break later is refused now."""
        if message.max_rows > self._context_tokens:
            raise ContextLengthExceeded(f"{message.max_rows} rows, and a slot holds {self._context_tokens}")
        if min(message.decode_batches_in_flight, message.threads, message.replay_threads, message.max_tokens) < 1:
            raise InvalidInput("decode_batches_in_flight, threads, replay_threads and max_tokens must be 1 or more")
        is_end = message.stage_ref.layers.start == 0 or message.stage_ref.layers.end == message.stage_ref.num_layers
        if not is_end:
            return
        if not 0 < message.num_prompt <= len(message.prefix_ids):
            raise InvalidInput("the first and the last stage need the prompt in prefix_ids")
        # The last token generated is never run.
        if len(message.prefix_ids) + message.max_tokens - 1 > message.max_rows:
            raise InvalidInput("max_rows is less than prefix_ids and max_tokens need")


def _seat_key(message: WorkAssignment) -> SeatKey:
    return SeatKey(message.task_id, message.lane, message.stage)


def _feed(message: WorkAssignment, order: Assignment) -> Feed:
    """An audit lane runs by itself what was committed before; the ids from there on are released to it."""
    started = 0 if message.replay_stages else message.start_row
    if message.decodes:
        return Feed(
            list(message.prefix_ids),
            len(message.prefix_ids),
            started=started,
            acknowledged=started,
        )
    committed = list(message.prefix_ids[: order.first_row])
    return ReplayFeed(
        committed,
        len(committed),
        started=started,
        acknowledged=started,
        first_due=len(message.prefix_ids) - 1,
    )


def _tail(message: WorkAssignment) -> Tail:
    return Tail(
        prompt_ids=message.prefix_ids[: message.num_prompt],
        generated_ids=list(message.prefix_ids[message.num_prompt :]),
        num_prefix=len(message.prefix_ids),
        sampler=message.sampler,
        end_ids=frozenset(message.end_ids),
        tokens_left=message.max_tokens,
        decodes=message.decodes,
    )
