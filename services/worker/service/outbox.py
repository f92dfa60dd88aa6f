"""What the coordinator must hear: delivered in order, again and again while it is away."""

import asyncio
import logging
from collections import deque

from services.worker.ports import Coordinator, Report
from shared.domain.errors import ButterflyError, InvalidCredentials, NodeNotFound
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

MAX_WAITING = 10_000
RETRY_S = 0.2


class Outbox:
    def __init__(self, *, coordinator: Coordinator, clock: Clock) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._waiting: deque[Report] = deque(maxlen=MAX_WAITING)
        """Full drops the oldest: what they tell of is long replaced."""
        self._wake = asyncio.Event()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def report(self, report: Report) -> None:
        self._waiting.append(report)
        self._wake.set()

    async def deliver(self) -> None:
        """One turn of the delivering loop. Reports that the coordinator refuses are dropped: they come too late."""
        await self._wake.wait()
        self._wake.clear()
        while self._waiting:
            report = self._waiting.popleft()
            try:
                await self._coordinator.tell(report)
            except ButterflyError as error:
                # Unknown node: this worker registers anew, and what it has to say is still true.
                is_early = isinstance(error, NodeNotFound | InvalidCredentials)
                log.warning("report_not_delivered", extra={"type": report.type, "code": error.code})
                if error.retryable or is_early:
                    if len(self._waiting) < MAX_WAITING:
                        self._waiting.appendleft(report)
                    await self._clock.sleep(RETRY_S)
