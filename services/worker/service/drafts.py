"""Sends the last stage's tokens to the coordinator: many sequences in one message, one message under way at a time."""

import asyncio
import itertools
import logging
from dataclasses import dataclass, field

from services.worker.domain.seat import Seat
from services.worker.ports import Coordinator
from shared.contracts.messages import MAX_DRAFTS_PER_MESSAGE, Draft, DraftTokens
from shared.domain.errors import ButterflyError, InvalidCredentials, NodeNotFound
from shared.domain.task import TokenRecord
from shared.runtime.clock import Clock
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)

MIN_INTERVAL_S = 0.04  # a message costs about as much as several steps; a reader does not see 40 ms
RETRY_S = 0.2
MAX_RECORDS_PER_MESSAGE = 2_048  # below the coordinator's limit of bytes, also with all the log-probabilities asked for


@dataclass(slots=True)
class _Waiting:
    first_position: int
    records: list[TokenRecord] = field(default_factory=list)


class DraftSender:
    """The first token of a sequence and its last go at once: a client waits for them."""

    def __init__(self, *, coordinator: Coordinator, tasks: BackgroundTasks, clock: Clock) -> None:
        self._coordinator = coordinator
        self._tasks = tasks
        self._clock = clock
        self._waiting: dict[Seat, _Waiting] = {}
        self._wake = asyncio.Event()
        self._timer_runs = False
        self._sent_at_s = clock.now_s() - MIN_INTERVAL_S

    @property
    def num_waiting(self) -> int:
        return sum(len(waiting.records) for waiting in self._waiting.values())

    def add(self, seat: Seat, position: int, record: TokenRecord) -> None:
        """`record`'s token stands at `position`; calls for one seat come in order."""
        is_first = seat.tail is not None and position == seat.tail.num_prefix
        is_last = seat.tail is not None and seat.tail.ended
        self._waiting.setdefault(seat, _Waiting(position)).records.append(record)
        wait_s = self._sent_at_s + MIN_INTERVAL_S - self._clock.now_s()
        if is_first or is_last or wait_s <= 0:
            self._wake.set()
        elif not self._timer_runs:
            self._timer_runs = True
            _ = self._tasks.start(self._wake_after(wait_s), name="draft interval")

    def hurry(self) -> None:
        """What waits is sent without waiting for more."""
        if self._waiting:
            self._wake.set()

    async def send(self) -> None:
        """One turn of the sending loop: wait until something is due, then send all there is.

        A coordinator that is away gets the same tokens later.
        """
        await self._wake.wait()
        self._wake.clear()
        taken = self._take()
        drafts = tuple(
            Draft(
                task_id=seat.key.task_id,
                epoch=seat.epoch,
                lane=seat.key.lane,
                first_position=waiting.first_position,
                records=tuple(waiting.records),
            )
            for seat, waiting in taken.items()
            if seat.live
        )
        if not drafts:
            return
        self._sent_at_s = self._clock.now_s()
        try:
            await self._coordinator.tell(DraftTokens(drafts=drafts))
        except ButterflyError as error:
            # Unknown node: this worker registers anew. Any other refusal is about sessions that are over.
            is_early = isinstance(error, NodeNotFound | InvalidCredentials)
            log.warning("drafts_not_delivered", extra={"code": error.code, "drafts": len(drafts)})
            if error.retryable or is_early:
                self._put_back(taken)
                await self._clock.sleep(RETRY_S)
        if self._waiting and not self._timer_runs:
            self._wake.set()

    def _take(self) -> dict[Seat, _Waiting]:
        """Of what waits as much as one message holds, the longest waiting first."""
        taken: dict[Seat, _Waiting] = {}
        room = MAX_RECORDS_PER_MESSAGE
        for seat, waiting in list(itertools.islice(self._waiting.items(), MAX_DRAFTS_PER_MESSAGE)):
            now, later = waiting.records[:room], waiting.records[room:]
            if not now:
                break
            taken[seat] = _Waiting(waiting.first_position, now)
            room -= len(now)
            if later:
                self._waiting[seat] = _Waiting(waiting.first_position + len(now), later)
            else:
                del self._waiting[seat]
        return taken

    def _put_back(self, taken: dict[Seat, _Waiting]) -> None:
        later, self._waiting = self._waiting, taken
        for seat, waiting in later.items():
            self._waiting.setdefault(seat, _Waiting(waiting.first_position)).records.extend(waiting.records)

    async def _wake_after(self, wait_s: float) -> None:
        await self._clock.sleep(wait_s)
        self._timer_runs = False
        self._wake.set()
