import random

import pytest

from shared.domain.deadline import Deadline
from shared.resilience.retry import Retrier, RetryBudget, RetryPolicy
from tests.fakes.clock import FakeClock


class Passing(Exception):
    """May be gone at the next try."""


class Lasting(Exception):
    """Will not."""


class Caller:
    def __init__(self, policy: RetryPolicy | None = None, *, seed: int = 1) -> None:
        self.clock = FakeClock()
        self.tries = 0
        self.waits_s: list[float] = []
        self._retrier = Retrier(
            policy or RetryPolicy(), now=self.clock.now_s, rng=random.Random(seed), sleep=self._sleep
        )

    @property
    def budget_left(self) -> float:
        return self._retrier.budget_left

    async def call(self, errors: list[Exception], *, deadline: Deadline | None = None, typical_s: float = 0.0) -> str:
        """Raises each of `errors` in turn, then succeeds."""
        left = iter(errors)

        async def attempt() -> str:
            self.tries += 1
            for error in left:
                raise error
            return "done"

        return await self._retrier.call(
            attempt,
            worth_it=lambda error: isinstance(error, Passing),
            on_retry=lambda attempt, wait_s: None,
            deadline=deadline,
            typical_s=typical_s,
        )

    async def _sleep(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        await self.clock.advance(seconds)


async def test_a_passing_error_is_tried_again_until_it_is_gone() -> None:
    caller = Caller()
    assert await caller.call([Passing(), Passing()]) == "done"
    assert caller.tries == 3


async def test_after_three_tries_the_last_error_comes_out_as_it_was_raised() -> None:
    caller = Caller()
    last = Passing("third")
    with pytest.raises(Passing) as caught:
        await caller.call([Passing("first"), Passing("second"), last, Passing("never reached")])
    assert caught.value is last
    assert caller.tries == 3


async def test_a_lasting_error_is_never_tried_again() -> None:
    caller = Caller()
    with pytest.raises(Lasting):
        await caller.call([Lasting()])
    assert caller.tries == 1


async def test_waits_are_drawn_between_nothing_and_the_doubling_limit() -> None:
    policy = RetryPolicy(attempts=6, base_s=0.1, cap_s=0.5)
    longest = [0.0] * 5
    for seed in range(200):
        caller = Caller(policy, seed=seed)
        await caller.call([Passing()] * 5)
        longest = [max(*pair) for pair in zip(longest, caller.waits_s, strict=True)]
    for seen, limit in zip(longest, [0.1, 0.2, 0.4, 0.5, 0.5], strict=True):
        assert 0.9 * limit < seen <= limit


async def test_no_try_begins_that_would_end_after_the_deadline() -> None:
    caller = Caller()
    deadline = Deadline.after(0.5, now_s=caller.clock.now_s())
    with pytest.raises(Passing):
        await caller.call([Passing()], deadline=deadline, typical_s=0.6)
    assert caller.tries == 1


async def test_the_budget_allows_a_burst_then_ten_retries_per_second() -> None:
    clock = FakeClock()
    budget = RetryBudget(RetryPolicy(), clock.now_s)
    assert sum(budget.take() for _ in range(100)) == 20
    await clock.advance(1.0)
    assert sum(budget.take() for _ in range(100)) == 10


async def test_the_budget_grows_by_a_fifth_of_the_calls() -> None:
    clock = FakeClock()
    budget = RetryBudget(RetryPolicy(), clock.now_s)
    while budget.take():
        pass
    for _ in range(50):
        budget.count_call()
    assert sum(budget.take() for _ in range(100)) == pytest.approx(10, abs=1)


async def test_without_budget_an_error_is_final() -> None:
    caller = Caller(RetryPolicy(budget_per_s=0.0, budget_ratio=0.0))
    with pytest.raises(Passing):
        await caller.call([Passing()])
    assert caller.tries == 1


async def test_only_retries_that_are_made_are_paid_for() -> None:
    caller = Caller(RetryPolicy(attempts=2, budget_per_s=5.0))
    before = caller.budget_left
    with pytest.raises(Passing):
        await caller.call([Passing(), Passing()])
    assert caller.budget_left == pytest.approx(before - 1, abs=0.5)
