"""What runs on seats for a task: its session, or the audit of its answer. Messages reach either alike."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable

from services.coordinator.domain.session import SeatKey, Session
from shared.contracts.messages import ReceiptPosted
from shared.domain.ids import NodeId


class Run(ABC):
    session: Session
    _wake: asyncio.Event
    """Set when something may have become possible."""

    @abstractmethod
    async def assign_again(self, seat: SeatKey) -> None:
        """The worker says that it holds the stage now: ask for the seat once more."""

    @abstractmethod
    def receipt(self, sender: NodeId, message: ReceiptPosted) -> None:
        """Of a seat that the sender holds. Raises `StaleEpoch`, `ProtocolViolation`."""

    @abstractmethod
    def laggard(self) -> tuple[NodeId | None, NodeId | None]:
        """Who keeps the others waiting, as far as one can tell, and whom it may wait for itself: no accusation."""

    @abstractmethod
    def _check(self) -> None:
        """Raise `Over`, `Failed` or `Lost` when it cannot go on as it is."""

    async def _until(self, done: Callable[[], bool]) -> None:
        while True:
            self._check()
            if done():
                return
            self._wake.clear()
            await self._wake.wait()
