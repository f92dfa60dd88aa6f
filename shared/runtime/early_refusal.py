"""Refuses at once what would be answered too late: less time is left than the route usually takes."""

import statistics
from collections import deque
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.domain.errors import DeadlineExceeded
from shared.resilience.context import current_deadline

KEPT = 32
FORGOTTEN_S = 10.0  # what is refused is not measured: without an end, one slow minute would refuse for ever
FEWEST = 5


class UsualTime:
    """How long the answers of one route took lately."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._taken: deque[tuple[float, float]] = deque(maxlen=KEPT)

    def add(self, seconds: float) -> None:
        self._taken.append((self._now(), seconds))

    def median_s(self) -> float:
        """Of the answers of the last `FORGOTTEN_S`; 0 when they are too few to tell."""
        since_s = self._now() - FORGOTTEN_S
        recent_s = [seconds for at_s, seconds in self._taken if at_s >= since_s]
        return statistics.median(recent_s) if len(recent_s) >= FEWEST else 0.0


class EarlyRefusal:
    """Around the app of one route. Raises `DeadlineExceeded` (504) before the route is asked."""

    def __init__(self, app: ASGIApp, *, now: Callable[[], float]) -> None:
        self._app = app
        self._now = now
        self._usual = UsualTime(now)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = self._now()
        deadline = current_deadline.get()
        if deadline is not None:
            usual_s = self._usual.median_s()
            if deadline.at_s - began_s < usual_s:
                raise DeadlineExceeded(f"{deadline.at_s - began_s:.3f} s are left, this usually takes {usual_s:.3f} s")
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self._app(scope, receive, noted)
        if status < 400:  # a refusal is quick and tells nothing of the work
            self._usual.add(self._now() - began_s)
