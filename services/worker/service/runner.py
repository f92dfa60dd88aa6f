"""Runs one loaded stage: takes what its source has ready, calls the engine, hands the result on."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from services.worker.domain.batching import DecodeCall, Feeder, Intake, PrefillCall, Turns
from services.worker.domain.drift import DriftMeter
from services.worker.domain.row_log import RowLog
from services.worker.domain.seat import Seat, Tail
from services.worker.domain.slots import compaction_move, lowest_free_slot
from services.worker.domain.threads import ThreadChoice
from services.worker.domain.token_rule import choose_token
from services.worker.domain.window_keeper import Mark, WindowKeeper
from services.worker.ports import Ints, LoadedEngine, Mask, Rows, StageEngine
from services.worker.service.engine_thread import EngineThread
from shared.contracts.messages import StageRef
from shared.domain.errors import ButterflyError, EngineFault
from shared.domain.ids import Epoch, TaskId
from shared.domain.measured import StageTimes, time_of
from shared.domain.task import TokenRecord
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

KEPT_S = 60.0  # a session that lost a node goes on within seconds, or is better off with a warm-up than waited for

EngineCall = DecodeCall | PrefillCall
Inputs = Ints | Rows


@dataclass(frozen=True, slots=True)
class StepResult:
    hidden: Rows | None
    """Not the last stage: float32 [rows, n_embd], in the order of the call."""
    records: tuple[tuple[TokenRecord, ...], ...]
    """The last stage: per seat of the call what its rows yield: the last so many of them yield a token each."""
    compute_s: float
    cpu_s: float
    """Of that, what the calling thread computed."""


@dataclass(frozen=True, slots=True)
class KeptRows:
    """What a seat of a session that goes on elsewhere has left in its slot."""

    task_id: TaskId
    epoch: Epoch
    windows: WindowKeeper
    passed: RowLog | None
    until_s: float


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a seat goes on."""

    slot: int
    mark: Mark
    """The chains before the row at which it does."""
    passed: RowLog | None
    """The rows before it that the seat has passed on, if they were kept."""


class Deliver(ABC):
    """Where results go."""

    @abstractmethod
    def deliver(self, runner: "StageRunner", call: EngineCall, result: StepResult) -> None:
        """Hand on what a call gave. Seats may have been freed meanwhile."""

    @abstractmethod
    def pass_by(self, runner: "StageRunner", call: PrefillCall) -> None:
        """Have a stage that lacks the rows of this call, which are here from an earlier epoch, get them."""

    @abstractmethod
    def note(self, call: EngineCall, result: StepResult) -> None:
        """What is done about a call once its result is delivered and the next call has begun."""

    @abstractmethod
    def fail(self, seats: Sequence[Seat], error: BaseException) -> None:
        """These seats cannot go on: free them and say so."""


class StageRunner:
    """One per loaded stage. Everything but the engine's calls happens on the event loop.

    At most one call of a stage is on the engine's thread at a time, so that what arrives meanwhile is merged into
    the next one.
    """

    def __init__(
        self,
        ref: StageRef,
        loaded: LoadedEngine,
        *,
        n_slots: int,
        memory_bytes: int,
        load_ms: float,
        thread: EngineThread,
        target: Deliver,
        on_lost: Callable[["StageRunner"], None],
        on_outlived: Callable[["StageRunner"], None],
        clock: Clock,
    ) -> None:
        """`on_lost` hears that the engine broke: the runner is closed and its seats are freed. `on_outlived` hears that
        a superseded stage has lost its last seat."""
        self.ref = ref
        self.loaded = loaded
        self.n_slots = n_slots
        self.memory_bytes = memory_bytes
        """Weights and KV cache."""
        self.load_ms = load_ms
        self.is_first = ref.layers.start == 0
        self.is_last = ref.layers.end == ref.num_layers
        self.feeder = Feeder()
        self.intake = Intake()
        self.used_at_s = clock.now_s()
        self.is_superseded = False
        """The model is cut otherwise for new sessions, and none has taken a seat here since."""
        self.times: StageTimes | None = None
        """What its calls took at its trial; None: it had none."""
        self.step_told_at_s: dict[bool, float] = {}
        """When a step was last told as an event, of prefill (True) and of decode."""
        self._turns = Turns(self.feeder if self.is_first else self.intake)
        self._engine = loaded.engine
        self._seats: dict[int, Seat] = {}
        self._kept: dict[int, KeptRows] = {}
        """By slot, like the seats; the oldest first."""
        self._thread = thread
        self._target = target
        self._on_lost, self._on_outlived = on_lost, on_outlived
        self._clock = clock
        self._choice = ThreadChoice()
        self.drift = DriftMeter()
        self._threads: int | None = None
        """What the engine is set to."""
        self._is_busy = False
        self._is_closed = False

    @property
    def seats(self) -> Iterable[Seat]:
        return self._seats.values()

    @property
    def num_seats(self) -> int:
        return len(self._seats)

    @property
    def num_waiting(self) -> int:
        return self.feeder.num_waiting if self.is_first else self.intake.num_waiting

    @property
    def is_idle(self) -> bool:
        return not self._seats and not self._is_busy

    def free_slot(self) -> int | None:
        """The lowest slot that nobody sits at, None when there is none. Rows kept for later give way."""
        self.forget_expired()
        if len(self._seats) + len(self._kept) == self.n_slots:
            self._forget(list(self._kept)[:1])
        return lowest_free_slot(self._used(), self.n_slots)

    def take_kept(self, task_id: TaskId, row: int, *, recalls: bool) -> Kept | None:
        """The slot that has the rows before `row` of the task, and no others any more; None when they are not here, or
        what was passed on of them is not, which the next stage `recalls`. The slot is the caller's to seat."""
        for slot, kept in self._kept.items():
            mark, passed = kept.windows.mark(row), kept.passed
            num_passed = 0 if passed is None else passed.num_rows
            if kept.task_id == task_id and mark is not None and not (recalls and num_passed < row):
                del self._kept[slot]
                self._thread.submit(partial(self._engine.truncate, slot, row), self._moved)
                if passed is not None:
                    passed.cut(row)
                return Kept(slot, mark, passed)
        return None

    def forget(self, task_id: TaskId, *, up_to: Epoch) -> None:
        """Rows kept for the task, by seats of epochs up to this one, are not wanted any more."""
        self._forget([slot for slot, kept in self._kept.items() if kept.task_id == task_id and kept.epoch <= up_to])

    def forget_expired(self) -> None:
        """Let go of rows that no epoch has asked for in time."""
        now_s = self._clock.now_s()
        self._forget([slot for slot, kept in self._kept.items() if kept.until_s <= now_s])

    def seat(self, seat: Seat) -> None:
        """Give `seat` its slot, which must be free."""
        self._seats[seat.slot] = seat
        self.used_at_s = self._clock.now_s()
        self.is_superseded = False

    def free(self, seat: Seat, *, keep: bool = False) -> None:
        """Empty the seat's slot, or `keep` its rows, and move the others together when gaps would slow the engine down.

        Slots change here at once and in the engine in its turn: calls already given to the engine's thread were
        built with the old slots and run before.
        """
        seat.live = False
        self.feeder.forget(seat)
        self.intake.forget(seat)
        del self._seats[seat.slot]
        self.used_at_s = self._clock.now_s()
        if seat.passed is not None and (self._is_closed or not keep):
            seat.passed.close()
        if self._is_closed:
            return
        if keep:
            self._kept[seat.slot] = KeptRows(
                seat.key.task_id, seat.epoch, seat.windows, seat.passed, self.used_at_s + KEPT_S
            )
        else:
            self._thread.submit(partial(self._engine.drop, seat.slot), self._moved)
        self._compact()
        self.pump()
        if self.is_superseded and not self._seats:
            self._on_outlived(self)

    def pump(self) -> None:
        """Start the next call if the engine is free and something is ready."""
        if self._is_busy or self._is_closed:
            return
        while isinstance(call := self._turns.next_call(), PrefillCall) and call.is_recall:
            self._target.pass_by(self, call)
        if call is None:
            return
        self._is_busy = True
        thread = self._thread
        begin = _Begin(
            self._clock.now_s(),
            number=thread.num_given if thread.is_idle else None,
            num_beside=thread.num_beside if thread.is_undisturbed else None,
        )
        rows, limit = _size_of(call)
        threads = self._choice.choose(rows, limit)
        expected_s = self._choice.expected_s(rows, limit)
        step, finished = self._prepare(call, threads), partial(self._finished, call, threads, begin)
        self._thread.submit(step, finished, n_threads=threads, expected_s=expected_s)

    def lend(self) -> tuple[StageEngine, Sequence[int]]:
        """The engine, and the slots that nobody has rows in: for one call on the engine's thread that is given there at
        once and leaves these slots empty. It may change the threads."""
        self._threads = None
        used = self._used()
        return self._engine, [slot for slot in range(self.n_slots) if slot not in used]

    def close(self) -> None:
        """No more calls; the engine is closed after the one that runs. Idempotent."""
        if not self._is_closed:
            self._forget(list(self._kept))
            self._is_closed = True
            self._thread.submit(self._engine.close, self._moved)

    def _used(self) -> set[int]:
        return self._seats.keys() | self._kept.keys()

    def _forget(self, slots: Iterable[int]) -> None:
        for slot in slots:
            kept = self._kept.pop(slot)
            if kept.passed is not None:
                kept.passed.close()
            self._thread.submit(partial(self._engine.drop, slot), self._moved)

    def _compact(self) -> None:
        while move := compaction_move(self._used()):
            source, target = move
            if source in self._kept:
                self._kept[target] = self._kept.pop(source)
            else:
                self._seats[target] = moved = self._seats.pop(source)
                moved.slot = target
            self._thread.submit(partial(self._move, source, target), self._moved)

    def _prepare(self, call: EngineCall, threads: int) -> Callable[[], StepResult]:
        """Everything the engine's thread needs, taken now: what it runs later must not look at changing state."""
        seats = call.seats
        change_threads, self._threads = threads != self._threads, threads
        x: Inputs = np.asarray(call.x, np.int32) if self.is_first else np.asarray(call.x, np.float32)
        if isinstance(call, DecodeCall):
            slots = np.array([seat.slot for seat in seats], np.int32)
            positions = np.array(call.positions, np.int32)
        else:
            slots = np.full(call.num_rows, call.seat.slot, np.int32)
            positions = np.arange(call.first, call.first + call.num_rows, dtype=np.int32)
        return partial(self._step, call, x, slots, positions, threads if change_threads else None)

    def _step(self, call: EngineCall, x: Inputs, slots: Ints, positions: Ints, threads: int | None) -> StepResult:
        """On the engine's thread."""
        began_s, began_cpu_s = self._clock.now_s(), self._clock.thread_s()
        if threads is not None:
            self._engine.set_threads(threads)
        hidden: Rows | None = None
        records: tuple[tuple[TokenRecord, ...], ...] = ()
        if self.is_last:
            records = _sample(call, self._engine.forward(x, slots, positions, _wanted(call, len(x))))
        else:
            hidden = self._engine.forward(x, slots, positions)
        return StepResult(hidden, records, self._clock.now_s() - began_s, self._clock.thread_s() - began_cpu_s)

    def _finished(self, call: EngineCall, threads: int, begin: "_Begin", future: "Future[StepResult]") -> None:
        self._is_busy = False
        error = future.exception()
        if error is None:
            result = future.result()
            self._choice.note(*_size_of(call), threads, result.compute_s)
            rows = call.num_rows if isinstance(call, PrefillCall) else 1
            for seat in call.seats:
                seat.computed += rows
                seat.waiting -= 1
            self._target.deliver(self, call, result)
            delivered_s = self._clock.now_s()
            handling_s = delivered_s - begin.at_s - result.compute_s if self._was_alone(begin) else None
            self.pump()
            if begin.num_beside == self._thread.num_beside:
                self._note_drift(call, threads, result, handling_s=handling_s, now_s=delivered_s)
            self._target.note(call, result)
        else:
            self._failed(call, error)
            self.pump()

    def _was_alone(self, begin: "_Begin") -> bool:
        """Whether the engine's thread was given nothing else meanwhile."""
        return begin.number is not None and self._thread.num_given == begin.number + 1

    def _note_drift(
        self, call: EngineCall, threads: int, result: StepResult, *, handling_s: float | None, now_s: float
    ) -> None:
        """Beside the trial's quickest number of threads: predictions go by that. Not while others are compared, and not
        of calls that a stage was loaded beside: what they took says nothing about later ones."""
        rows, limit = _size_of(call)
        if self.times is None or not self._choice.has_settled(rows, limit):
            return
        if isinstance(call, DecodeCall) and rows == 1:
            expected = replace(time_of(self.times.decode, 1, limit), cpu_s=time_of(self.times.decode, 1, threads).cpu_s)
            self.drift.note_row(result.compute_s, result.cpu_s, expected, handling_s=handling_s, now_s=now_s)
        elif isinstance(call, DecodeCall):
            self.drift.note_batch(result.compute_s, time_of(self.times.decode, rows, limit).seconds, now_s=now_s)
        elif rows > 1:
            is_replay = any(len(yielded) > 1 for yielded in result.records)
            times = self.times.replay if is_replay else self.times.prompt
            self.drift.note_chunk(result.compute_s, time_of(times, rows, limit).seconds, now_s=now_s)

    def _failed(self, call: EngineCall, error: BaseException) -> None:
        """Most errors leave the engine as it was before the call; a fault, or one nobody foresaw, does not."""
        is_lost = isinstance(error, EngineFault) or not isinstance(error, ButterflyError)
        seats = list(self.seats) if is_lost else [seat for seat in call.seats if seat.live]
        log.error("step_failed", extra={"layers": str(self.ref.layers), "seats": len(seats)}, exc_info=error)
        if is_lost:
            self.close()
        self._target.fail(seats, error)
        if is_lost:
            self._on_lost(self)

    def _move(self, source: int, target: int) -> None:
        self._engine.copy(source, target)
        self._engine.drop(source)

    def _moved(self, future: "Future[None]") -> None:
        if error := future.exception():
            log.error("slot_bookkeeping_failed", extra={"stage": str(self.ref.layers)}, exc_info=error)


@dataclass(frozen=True, slots=True)
class _Begin:
    """When a call was given to the engine's thread."""

    at_s: float
    number: int | None
    """Of the calls given to it; None where it had another one to do."""
    num_beside: int | None
    """Pieces of work beside the calls so far; None where one was under way."""


def _size_of(call: EngineCall) -> tuple[int, int]:
    """Rows of a call, and the most threads its sessions allow."""
    if isinstance(call, PrefillCall):
        return call.num_rows, call.seat.threads_at(call.first)
    return len(call.seats), max(seat.threads for seat in call.seats)


def _wanted(call: EngineCall, num_rows: int) -> Mask:
    if isinstance(call, DecodeCall):
        return np.ones(num_rows, np.bool_)
    tail = _tail_of(call.seat)
    return np.array([tail.is_due(position) for position in range(call.first, call.first + num_rows)], np.bool_)


def _sample(call: EngineCall, logits: Rows) -> tuple[tuple[TokenRecord, ...], ...]:
    """The tokens of each seat. `logits`: float32 [rows that yield one, n_vocab]."""
    if isinstance(call, PrefillCall):
        end = call.first + call.num_rows
        return (_choose(_tail_of(call.seat), end - len(logits), logits),)
    return tuple(
        _choose(_tail_of(seat), position, logits[index : index + 1])
        for index, (seat, position) in enumerate(zip(call.seats, call.positions, strict=True))
    )


def _choose(tail: Tail, first: int, logits: Rows) -> tuple[TokenRecord, ...]:
    """The tokens that follow the rows from `first` on, each chosen after those before it."""
    records: list[TokenRecord] = []
    generated_ids = tail.generated_ids if len(logits) == 1 else list(tail.generated_ids)
    for position, row in enumerate(logits, first):
        if records:
            generated_ids.append(records[-1].token_id)
        records.append(
            choose_token(
                row,
                position=position,
                params=tail.sampler,
                prompt_ids=tail.prompt_ids,
                generated_ids=generated_ids,
            )
        )
    return tuple(records)


def _tail_of(seat: Seat) -> Tail:
    assert seat.tail is not None, "seats of a last stage have a tail"  # noqa: S101
    return seat.tail
