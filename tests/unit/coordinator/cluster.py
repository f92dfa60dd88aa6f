"""Workers that sign, around the coordinator of `harness`: they do what they are told as long as there is anything."""

import asyncio
from collections.abc import AsyncIterator, Callable

from services.coordinator.domain.session import Session
from shared.contracts.frame import Frame, FrameKind, Row, encode_frame
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
from shared.domain.hidden import FLOAT_BYTES, HiddenRows
from shared.domain.ids import Epoch, TaskId
from tests.fakes.identities import COORDINATOR_KEY, COORDINATOR_URL, KEYS
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
        self.withholding: set[str] = set()
        """Nodes that send nothing to the coordinator in place of a neighbour."""
        self.is_guessing = False
        """Whether the neighbour signs all the same."""
        self._links: dict[str, Link] = {}

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
        self.lanes[key] = SigningLane(
            seats, conduct=self.conduct, is_mute=lambda seat: seat.node_id in self.mute, relayed=self._relayed
        )

    async def _relayed(self, seat: SigningSeat, row: int, data: bytes) -> bool:
        """Send a row to the coordinator, if that is where the seat's rows go, and see it come out of there."""
        peer = seat.order.next
        if peer is None or peer.address != COORDINATOR_URL:
            return True
        if seat.seat.node_id in self.withholding:
            return self.is_guessing
        link = self._links.get(peer.link_token)
        if link is None:
            link = self._links[peer.link_token] = Link(self.coordinator, peer.link_token)
        links = self.coordinator.links
        passed = asyncio.ensure_future(links.came(len(links.frames) + 1))
        hidden = HiddenRows(data, len(data) // FLOAT_BYTES)
        place = Row(seat.seat.task_id, seat.seat.epoch, row)
        link.send(Frame(FrameKind.PREFILL, seat.seat.lane, seat.seat.stage + 1, rows=(place,), hidden=hidden))
        await asyncio.wait({passed, link.carrying}, return_when=asyncio.FIRST_COMPLETED)
        passed.cancel()
        return True


class Link:
    """A worker's link to the coordinator."""

    def __init__(self, coordinator: Coordinator, token: str) -> None:
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue()
        receiving = coordinator.relays.receive(token, self._chunks())
        self.carrying = coordinator.tasks.start(receiving, name="link")

    def send(self, frame: Frame) -> None:
        self._waiting.put_nowait(encode_frame(frame))

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            yield await self._waiting.get()
