"""Messages about windows, to the seats of a session."""

import asyncio
from collections.abc import Iterable

from services.coordinator.domain.faults import MAX_REASON, FaultKind
from services.coordinator.domain.ledger import Release, Seal
from services.coordinator.domain.session import Session
from services.coordinator.service.parts import Parts
from shared.contracts.messages import SealWindow, WindowCommitted, WindowRelease
from shared.domain.errors import ButterflyError, CircuitOpen, PeerUnavailable
from shared.domain.plan import Partition

ToSeat = WindowRelease | SealWindow | WindowCommitted


class Telling:
    def __init__(self, parts: Parts, session: Session) -> None:
        self._parts, self._session = parts, session

    def message(self, step: Seal | Release) -> ToSeat:
        task_id, epoch = self._session.task.task_id, self._session.epoch
        match step:
            case Seal():
                return SealWindow(
                    task_id=task_id, epoch=epoch, lane=step.lane, window=step.window, row_end=step.row_end
                )
            case Release():
                return WindowRelease(
                    task_id=task_id,
                    epoch=epoch,
                    lane=step.lane,
                    window=step.window,
                    row_start=step.row_start,
                    ids=step.ids,
                )

    async def lane(self, lane: int, messages: Iterable[ToSeat]) -> None:
        """In their order. A seat that cannot be told loses the session."""
        seats = self._session.lanes[lane]
        for message in messages:
            told = seats if isinstance(message, SealWindow) else seats[:1]
            await asyncio.gather(*(self._tell(seat, message) for seat in told))

    async def _tell(self, seat: Partition, message: ToSeat) -> None:
        session = self._session
        member = self._parts.members.find(seat.node_id)
        if member is None or session.epoch != message.epoch or not session.is_running:
            return  # the session has been told already
        try:
            await member.worker.tell(message)
        except ButterflyError as error:
            if isinstance(error, PeerUnavailable):
                self._parts.members.unreachable(member.node_id)
            if session.epoch == message.epoch:
                reason = f"{error.code}: {error.message}"[:MAX_REASON]
                now_s = self._parts.clock.now_s()
                kind = FaultKind.GONE
                if isinstance(error, CircuitOpen):
                    kind = session.refused(member.node_id, member.boot_id, error.code, now_s=now_s)
                session.lose(kind, reason, suspect=member.node_id, now_s=now_s)
