import pytest
from starlette.types import Message, Receive, Scope, Send

from shared.domain.deadline import Deadline
from shared.domain.errors import DeadlineExceeded
from shared.resilience.context import current_deadline
from shared.runtime.early_refusal import EarlyRefusal
from tests.fakes.clock import FakeClock


class Route:
    """Takes `takes_s` for each answer."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.takes_s = 1.0
        self.status = 200
        self.asked = 0
        self._guarded = EarlyRefusal(self._answer, now=self.clock.now_s)

    async def call(self, *, left_s: float | None = None) -> None:
        deadline = None if left_s is None else Deadline.after(left_s, now_s=self.clock.now_s())
        token = current_deadline.set(deadline)
        try:
            await self._guarded({"type": "http"}, _nothing, _dropped)
        finally:
            current_deadline.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        await self.clock.advance(self.takes_s)
        await send({"type": "http.response.start", "status": self.status})


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _dropped(message: Message) -> None:
    pass


async def test_what_would_come_too_late_is_refused_before_it_is_begun() -> None:
    route = Route()
    for _ in range(5):
        await route.call()
    with pytest.raises(DeadlineExceeded):
        await route.call(left_s=0.9)
    assert route.asked == 5
    await route.call(left_s=1.1)
    await route.call()
    assert route.asked == 7


async def test_nothing_is_refused_before_enough_answers_were_measured() -> None:
    route = Route()
    for _ in range(4):
        await route.call()
    await route.call(left_s=0.1)
    assert route.asked == 5


async def test_quick_refusals_do_not_make_a_route_look_quick() -> None:
    route = Route()
    for _ in range(5):
        await route.call()
    route.takes_s, route.status = 0.0, 503
    for _ in range(20):
        await route.call()
    with pytest.raises(DeadlineExceeded):
        await route.call(left_s=0.9)


async def test_a_slow_time_is_forgotten() -> None:
    route = Route()
    for _ in range(5):
        await route.call()
    await route.clock.advance(11)
    await route.call(left_s=0.1)
    assert route.asked == 6
