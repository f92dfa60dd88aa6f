"""The ring: rows come in from the stage before, go through the engine, and go on to the stage after.

Stage 0 starts rows (`domain.batching.Feeder`), the last stage turns rows into tokens and sends them to stage 0. A ring
of one stage does both without a link. Every part of it acts on the event loop and returns at once.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

from services.worker.domain.batching import Hidden, PrefillCall, hidden_of, rows_of
from services.worker.domain.seat import Seat, SeatKey
from services.worker.ports import ReportTo
from services.worker.service.runner import Deliver, EngineCall, StageRunner, StepResult
from services.worker.service.seating import Seated, Seating
from shared.contracts.frame import Frame, FrameKind, Row, encode_frame
from shared.contracts.messages import SessionFault
from shared.domain.errors import ButterflyError, EngineFault, ProtocolViolation
from shared.domain.ids import NodeId
from shared.domain.numerics import TILE_ROWS
from shared.domain.task import TokenRecord
from shared.events.catalogue import StepTimed
from shared.events.publisher import Publisher

STEP_SAMPLE_S = 1.0  # one step in so long is told, of each stage and kind: a step takes milliseconds


class Drafts(Protocol):
    def add(self, seat: Seat, position: int, record: TokenRecord) -> None: ...


class Receipts(Protocol):
    def note(self, call: EngineCall, result: StepResult) -> None: ...


Send = Callable[[NodeId, bytes], None]
Way = tuple[NodeId, int, int]
"""Next node, lane and the stage that takes the frame there."""


class Ring(Deliver):
    def __init__(
        self,
        *,
        node_id: NodeId,
        seating: Seating,
        send: Send,
        on_probe: Callable[[NodeId, Frame], None],
        drafts: Drafts,
        receipts: Receipts,
        report: ReportTo,
        events: Publisher,
        now: Callable[[], float],
    ) -> None:
        """`send` puts a frame on the link to a node, `report` a message on its way to the coordinator. `on_probe` hears
        of frames that are no session's."""
        self._node_id = node_id
        self._seating = seating
        self._send = send
        self._on_probe = on_probe
        self._drafts = drafts
        self._receipts = receipts
        self._report = report
        self._events = events
        self._now = now
        self.dropped: Counter[str] = Counter()
        """Rows that came in and were not wanted, by reason: `unknown` (stopped, or of another epoch), `repeated`."""

    def take(self, peer: NodeId, frames: Iterable[Frame]) -> None:
        """Take in what came over the link from `peer`.

        Raises `ProtocolViolation` at the first row that must not be; what came before it counts.
        """
        touched: dict[StageRunner, None] = {}
        try:
            for frame in frames:
                match frame.kind:
                    case FrameKind.DECODE:
                        self._take_rows(peer, frame, touched)
                    case FrameKind.PREFILL:
                        self._take_chunk(peer, frame, touched)
                    case FrameKind.RECALL:
                        self._take_recall(peer, frame)
                    case FrameKind.TOKENS:
                        self._take_tokens(peer, frame, touched)
                    case FrameKind.PROBE:
                        self._on_probe(peer, frame)
                    case FrameKind.KEEP_ALIVE | FrameKind.END:
                        pass
        finally:
            for runner in touched:
                runner.pump()

    def deliver(self, runner: StageRunner, call: EngineCall, result: StepResult) -> None:
        if result.hidden is None:
            self._hand_out_tokens(call, result.records)
        else:
            self._pass_on(runner, call, result.hidden)
        self._tell_step(runner, call, result.compute_s)

    def pass_by(self, runner: StageRunner, call: PrefillCall) -> None:
        self._pass_by(Seated(call.seat, runner), call.first, call.num_rows)

    def note(self, call: EngineCall, result: StepResult) -> None:
        self._receipts.note(call, result)

    def fail(self, seats: Sequence[Seat], error: BaseException) -> None:
        code = error.code if isinstance(error, ButterflyError) else EngineFault.code
        for seat in seats:
            self._seating.free(seat)
            self._report(
                SessionFault(
                    task_id=seat.key.task_id,
                    epoch=seat.epoch,
                    lane=seat.key.lane,
                    stage=seat.key.stage,
                    error_code=code,
                    error=str(error)[:500],
                ),
                seat.report_to,
            )

    def _seated(self, peer: NodeId, frame: Frame, row: Row) -> Seated | None:
        """The seat a row is for, if it is still here and `peer` is the one that feeds it."""
        seated = self._seating.find(SeatKey(row.task_id, frame.lane, frame.stage), row.epoch)
        if seated is None:
            self.dropped["unknown"] += 1
        elif seated.seat.previous != peer:
            raise ProtocolViolation("rows for a seat that another node feeds")
        return seated

    def _take_rows(self, peer: NodeId, frame: Frame, touched: dict[StageRunner, None]) -> None:
        hidden = _hidden_of(frame)
        if len(hidden) != len(frame.rows):
            raise ProtocolViolation(f"{len(frame.rows)} places for {len(hidden)} rows")
        for row, values in zip(frame.rows, hidden, strict=True):
            seated = self._seated(peer, frame, row)
            if seated is None:
                continue
            seat, runner = seated.seat, seated.runner
            _check_hidden_fits(runner, hidden)
            _check_due(seat, row.position, is_due=True)
            if not seat.accept(row.position, 1):
                self.dropped["repeated"] += 1
                continue
            runner.intake.add_row(seat, row.position, values)
            touched[runner] = None

    def _take_chunk(self, peer: NodeId, frame: Frame, touched: dict[StageRunner, None]) -> None:
        hidden = _hidden_of(frame)
        if len(frame.rows) != 1 or len(hidden) > TILE_ROWS:
            raise ProtocolViolation(f"a chunk has one place and at most {TILE_ROWS} rows")
        row = frame.rows[0]
        seated = self._seated(peer, frame, row)
        if seated is None:
            return
        seat, runner = seated.seat, seated.runner
        _check_hidden_fits(runner, hidden)
        _check_due(seat, row.position + len(hidden) - 1, is_due=frame.final)
        if not seat.accept(row.position, len(hidden)):
            self.dropped["repeated"] += len(hidden)
            return
        runner.intake.add_chunk(seat, row.position, hidden, final=frame.final)
        touched[runner] = None

    def _take_recall(self, peer: NodeId, frame: Frame) -> None:
        if len(frame.rows) != 1 or frame.hidden is not None:
            raise ProtocolViolation("rows are recalled by the place of the first")
        row = frame.rows[0]
        seated = self._seated(peer, frame, row)
        if seated is None:
            return
        num_rows = seated.seat.recall(row.position)
        if num_rows:
            self._pass_by(seated, row.position, num_rows)
        else:
            self.dropped["repeated"] += 1

    def _take_tokens(self, peer: NodeId, frame: Frame, touched: dict[StageRunner, None]) -> None:
        for row in frame.rows:
            seated = self._seated(peer, frame, row)
            if seated is None:
                continue
            seat, touched[seated.runner] = seated.seat, None
            if seat.feed is not None or row.token_id is not None or row.position > seat.start_row:
                self._take_answer(seated, row.position, row.token_id)
            else:  # of rows that the stages from here on have already
                self._send_answer(seated, row)

    def _take_answer(self, seated: Seated, position: int, token_id: int | None) -> None:
        feed, n_vocab = seated.seat.feed, seated.runner.loaded.n_vocab
        if feed is None:
            raise ProtocolViolation("a token for a seat that is not at stage 0")
        if token_id is not None and n_vocab is not None and token_id >= n_vocab:
            raise ProtocolViolation(f"token {token_id} in a vocabulary of {n_vocab}")
        if feed.take_answer(position, token_id):
            seated.runner.feeder.passed(seated.seat, position)
        else:
            self.dropped["repeated"] += 1

    def _pass_on(self, runner: StageRunner, call: EngineCall, hidden: Hidden) -> None:
        if isinstance(call, PrefillCall):
            seat = call.seat
            if not seat.live:
                return
            row = Row(seat.key.task_id, seat.epoch, call.first)
            if call.first >= seat.next_row:
                self._send_on(_way(seat), FrameKind.PREFILL, (row,), hidden, final=call.final)
            elif seat.ends_replay:
                self._acknowledge(Seated(seat, runner), call.first + call.num_rows)
            else:
                self._send_on(_way(seat), FrameKind.RECALL, (row,), None)
            return
        by_way: dict[Way, list[int]] = {}
        for index, seat in enumerate(call.seats):
            if seat.live:
                by_way.setdefault(_way(seat), []).append(index)
        for way, indexes in by_way.items():
            rows = tuple(
                Row(call.seats[index].key.task_id, call.seats[index].epoch, call.positions[index]) for index in indexes
            )
            chosen = hidden if len(indexes) == len(hidden) else hidden[indexes]
            self._send_on(way, FrameKind.DECODE, rows, chosen)

    def _pass_by(self, seated: Seated, first: int, num_rows: int) -> None:
        """These rows are here from an earlier epoch. The next seat gets them as it did then, or has them too."""
        seat = seated.seat
        row = Row(seat.key.task_id, seat.epoch, first)
        if first < seat.next_row:
            self._send_on(_way(seat), FrameKind.RECALL, (row,), None)
        elif seat.passed is None:
            raise EngineFault("a seat that kept nothing was told to send it again")
        else:
            self._send_on(_way(seat), FrameKind.PREFILL, (row,), seat.passed.rows(first, num_rows))

    def _acknowledge(self, seated: Seated, end: int) -> None:
        """Rows before `end` have passed all stages that had to compute them."""
        seat = seated.seat
        if seat.feed is not None:
            self._take_answer(seated, end, None)
        else:
            self._send_answer(seated, Row(seat.key.task_id, seat.epoch, end))

    def _send_answer(self, seated: Seated, row: Row) -> None:
        node_id, lane, stage = _way(seated.seat)
        way = (node_id, lane, 0 if seated.runner.is_last else stage)
        self._send_on(way, FrameKind.TOKENS, (row,), None)

    def _send_on(
        self, way: Way, kind: FrameKind, rows: tuple[Row, ...], hidden: Hidden | None, *, final: bool = False
    ) -> None:
        node_id, lane, stage = way
        data = None if hidden is None else rows_of(hidden)
        self._send(node_id, encode_frame(Frame(kind, lane, stage, rows=rows, final=final, hidden=data)))

    def _hand_out_tokens(self, call: EngineCall, records: tuple[tuple[TokenRecord, ...], ...]) -> None:
        """Tokens to stage 0 first: the ring waits for them; the coordinator gets its drafts after."""
        by_way: dict[Way, list[Row]] = {}
        drafted: list[tuple[Seat, int, TokenRecord]] = []
        for index, (seat, yielded) in enumerate(zip(call.seats, records, strict=True)):
            if not seat.live:
                continue
            end = call.first + call.num_rows if isinstance(call, PrefillCall) else call.positions[index] + 1
            token_id = None
            for position, record in enumerate(yielded, end - len(yielded) + 1):
                if seat.tail is not None:
                    token_id = seat.tail.take(record)
                if seat.drafts_tokens:
                    drafted.append((seat, position, record))
            if seat.next is None:
                seated = self._seating.at(seat.key)
                if seated is not None:
                    self._take_answer(seated, end, token_id)
            else:
                row = Row(seat.key.task_id, seat.epoch, end, token_id)
                by_way.setdefault((seat.next, seat.key.lane, 0), []).append(row)
        for way, rows in by_way.items():
            self._send_on(way, FrameKind.TOKENS, tuple(rows), None)
        for seat, position, record in drafted:
            self._drafts.add(seat, position, record)

    def _tell_step(self, runner: StageRunner, call: EngineCall, compute_s: float) -> None:
        is_prefill = isinstance(call, PrefillCall)
        rows = call.num_rows if isinstance(call, PrefillCall) else len(call.seats)
        now_s = self._now()
        if now_s - runner.step_told_at_s.get(is_prefill, -STEP_SAMPLE_S) >= STEP_SAMPLE_S:
            runner.step_told_at_s[is_prefill] = now_s
            role: Literal["prefill", "decode"] = "prefill" if is_prefill else "decode"
            self._events.publish(StepTimed(self._node_id, call.seats[0].key.stage, rows, compute_s * 1000, role))


def _way(seat: Seat) -> Way:
    if seat.next is None:
        raise EngineFault("a seat before the last stage has nobody to send to")
    return seat.next, seat.key.lane, seat.key.stage + 1


def _hidden_of(frame: Frame) -> Hidden:
    if frame.hidden is None:
        raise ProtocolViolation(f"a {frame.kind} frame without rows")
    return hidden_of(frame.hidden)


def _check_hidden_fits(runner: StageRunner, hidden: Hidden) -> None:
    if runner.is_first:
        raise ProtocolViolation("hidden states for stage 0")
    if hidden.shape[1] != runner.loaded.n_embd:
        raise ProtocolViolation(f"rows {hidden.shape[1]} wide, not {runner.loaded.n_embd}")


def _check_due(seat: Seat, last_position: int, *, is_due: bool) -> None:
    """A last stage knows by itself which rows yield a token, and when no more are."""
    if seat.tail is None:
        return
    if seat.tail.is_due(last_position) != is_due:
        raise ProtocolViolation(f"row {last_position} {'yields no' if is_due else 'yields a'} token")
    if seat.tail.ended:
        raise ProtocolViolation(f"row {last_position} of a sequence that has ended")
