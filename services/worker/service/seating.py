"""Who sits where: the seats of this worker, by the names that frames and messages use."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from services.worker.domain.seat import Seat, SeatKey
from services.worker.service.runner import StageRunner
from shared.domain.ids import Epoch, TaskId

MAX_LEFT = 10_000  # seats remembered after they were freed; an assignment is delivered again within seconds


@dataclass(frozen=True, slots=True)
class Seated:
    seat: Seat
    runner: StageRunner


class Seating:
    def __init__(self) -> None:
        self._seated: dict[SeatKey, Seated] = {}
        self._left: OrderedDict[SeatKey, Epoch] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seated)

    def __iter__(self) -> Iterator[Seated]:
        """All of them; seats may be freed on the way."""
        return iter(list(self._seated.values()))

    def add(self, seat: Seat, runner: StageRunner) -> None:
        """Take the seat's slot and feed it, if its stage is the first."""
        runner.seat(seat)
        self._seated[seat.key] = Seated(seat, runner)

    def find(self, key: SeatKey, epoch: Epoch) -> Seated | None:
        """The seat of exactly this epoch, or None."""
        seated = self._seated.get(key)
        return seated if seated is not None and seated.seat.epoch == epoch else None

    def at(self, key: SeatKey) -> Seated | None:
        """The seat of whatever epoch, or None."""
        return self._seated.get(key)

    def was_left(self, key: SeatKey, epoch: Epoch) -> bool:
        """Whether this seat was freed in this epoch or a later one. Nobody may sit down there again: a window must not
        be signed twice in an epoch."""
        return self._left.get(key, Epoch(-1)) >= epoch

    def of_lane(self, task_id: TaskId, lane: int, epoch: Epoch) -> list[Seated]:
        """The seats of exactly this epoch and lane."""
        return [one for one in self if one.seat.key[:2] == (task_id, lane) and one.seat.epoch == epoch]

    def of_task(self, task_id: TaskId, *, up_to: Epoch) -> list[Seated]:
        """The task's seats of epochs up to `up_to`."""
        return [one for one in self if one.seat.key.task_id == task_id and one.seat.epoch <= up_to]

    def free(self, seat: Seat, *, keep: bool = False) -> None:
        """Empty the seat's slot, or `keep` its rows for a later epoch. A seat that was freed before, or replaced, is
        left alone."""
        if seat.live:
            seated = self._seated.pop(seat.key)
            self._left[seat.key] = seat.epoch
            self._left.move_to_end(seat.key)
            if len(self._left) > MAX_LEFT:
                self._left.popitem(last=False)
            seated.runner.free(seat, keep=keep)
