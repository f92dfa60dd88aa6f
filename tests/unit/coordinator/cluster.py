"""Workers that sign, around the coordinator of `harness`: they do what they are told as long as there is anything."""

from collections.abc import Callable

from services.coordinator.domain.session import Session
from shared.contracts.messages import (
    DraftTokens,
    ReceiptPosted,
    SealWindow,
    SessionStart,
    SessionStop,
    WindowCommitted,
    WindowRelease,
    WorkAssignment,
)
from shared.domain.errors import ButterflyError
from shared.domain.ids import Epoch, TaskId
from tests.fakes.identities import COORDINATOR_KEY, KEYS
from tests.fakes.signing_workers import Conduct, SigningLane, SigningSeat
from tests.fakes.workers import FakeWorker
from tests.unit.coordinator.harness import Coordinator

MAX_ROUNDS = 500
HONEST = Conduct()

LaneKey = tuple[TaskId, Epoch, int]


class Cluster:
    """`conduct`: of the seats; `mute`: nodes that post no receipts; `stopped`: lanes that stand
    still; `is_stopped` tells more exactly which."""

    def __init__(self, coordinator: Coordinator, *, conduct: Conduct = HONEST) -> None:
        self.coordinator = coordinator
        self.conduct = conduct
        self.mute: set[str] = set()
        self.stopped: set[int] = set()
        self.is_stopped: Callable[[LaneKey], bool] = lambda key: key[2] in self.stopped
        self.lanes: dict[LaneKey, SigningLane] = {}
        self.refusals: list[ButterflyError] = []
        self._heard: dict[FakeWorker, int] = {}

    async def run(self) -> None:
        """Until nobody has anything to do."""
        for _ in range(MAX_ROUNDS):
            await self.coordinator.settle()
            heard = self._listen()
            worked = False
            for key, running in list(self.lanes.items()):
                if not self.is_stopped(key) and not self._is_broken(running):
                    worked |= await running.pump(self._post)
            if not heard and not worked:
                await self.coordinator.settle()
                if not self._listen():
                    return
        raise AssertionError("the cluster does not come to rest")

    def epochs_of(self, session: Session) -> list[int]:
        return sorted({epoch for task_id, epoch, _ in self.lanes if task_id == session.task.task_id})

    async def _post(self, node_id: str, message: DraftTokens | ReceiptPosted) -> None:
        try:
            await self.coordinator.messages.handle(self.coordinator.tokens[node_id], message)
        except ButterflyError as error:  # late words are refused
            self.refusals.append(error)

    def _is_broken(self, lane: SigningLane) -> bool:
        return any(self.coordinator.workers[seat.seat.node_id].is_away for seat in lane.seats)

    def _listen(self) -> bool:
        heard = False
        for worker in list(self.coordinator.workers.runs):
            start = self._heard.get(worker, 0)
            for message in worker.told[start:]:
                heard = True
                match message:
                    case SessionStart():
                        self._start(message)
                    case SessionStop():
                        for key in [key for key in self.lanes if key[0] == message.task_id and key[1] <= message.epoch]:
                            del self.lanes[key]
                    case WindowRelease() | SealWindow() | WindowCommitted():
                        lane = self.lanes.get((message.task_id, message.epoch, message.lane))
                        if lane is not None:
                            lane.hear(message)
                    case _:
                        pass
            self._heard[worker] = len(worker.told)
        return heard

    def _start(self, message: SessionStart) -> None:
        orders: dict[int, WorkAssignment] = {}
        for worker in self.coordinator.workers.runs:
            for order in worker.assignments():
                if (order.task_id, order.epoch, order.lane) == (message.task_id, message.epoch, message.lane):
                    orders[order.stage] = order
        key = (message.task_id, message.epoch, message.lane)
        if key in self.lanes:
            return
        seats = []
        for _, order in sorted(orders.items()):
            seat = SigningSeat(order, COORDINATOR_KEY.public_key, COORDINATOR_KEY)
            seat.key = KEYS[seat.seat.node_id]
            seats.append(seat)
        self.lanes[key] = SigningLane(seats, conduct=self.conduct, is_mute=lambda seat: seat.node_id in self.mute)
