"""Trying an idempotent call again: few times, with full jitter, from a budget, before the deadline."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from shared.domain.deadline import Deadline

T = TypeVar("T")

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    attempts: int = 3
    """Tries in all, the first included."""
    base_s: float = 0.1
    cap_s: float = 5.0
    """The wait before try n+1 is uniform in [0, min(cap_s, base_s * 2^(n-1))]."""
    budget_ratio: float = 0.2
    budget_per_s: float = 10.0
    """Retries allowed per peer: this share of its calls plus this many per second."""


class RetryBudget:
    """A token bucket: retries must stay a small part of the traffic, or they make an outage worse."""

    _SECONDS_KEPT = 2.0  # an idle peer has saved at most this much of `budget_per_s`

    def __init__(self, policy: RetryPolicy, now: Callable[[], float]) -> None:
        self._policy = policy
        self._now = now
        self._cap = policy.budget_per_s * self._SECONDS_KEPT
        self._tokens = self._cap
        self._filled_s = now()

    def count_call(self) -> None:
        self._fill()
        self._tokens = min(self._cap, self._tokens + self._policy.budget_ratio)

    @property
    def left(self) -> float:
        """Retries that may be made at once."""
        self._fill()
        return self._tokens

    def take(self) -> bool:
        """True when one more retry is allowed; it is then paid for."""
        self._fill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _fill(self) -> None:
        now_s = self._now()
        self._tokens = min(self._cap, self._tokens + (now_s - self._filled_s) * self._policy.budget_per_s)
        self._filled_s = now_s


class Retrier:
    """Retries calls to one peer."""

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        now: Callable[[], float],
        rng: random.Random,
        sleep: Sleep | None = None,
    ) -> None:
        """`sleep` None: the event loop's own."""
        self._policy = policy
        self._now = now
        self._rng = rng
        self._sleep = sleep
        self._budget = RetryBudget(policy, now)

    @property
    def budget_left(self) -> float:
        return self._budget.left

    async def call(
        self,
        attempt: Callable[[], Awaitable[T]],
        *,
        worth_it: Callable[[BaseException], bool],
        on_retry: Callable[[int, float], None],
        deadline: Deadline | None = None,
        typical_s: float = 0.0,
    ) -> T:
        """The result of the first `attempt` that has one; else the last error, as it was raised.

        `worth_it`: whether an error may be gone at the next try. `on_retry` hears the number of the failed try and
        the wait. No try begins that `typical_s`, the usual length of a call, would carry beyond the deadline.
        """
        self._budget.count_call()
        try:
            return await attempt()  # mostly that is all
        except Exception as error:
            if not worth_it(error):
                raise
            failed = error

        def again(state: tenacity.RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome is not None else None
            if error is None or not worth_it(error):
                return False
            if state.attempt_number >= self._policy.attempts:
                return False  # asked before the budget: what is not made is not paid for
            if deadline is not None and deadline.at_s - self._now() <= typical_s:
                return False
            return self._budget.take()

        def tell(state: tenacity.RetryCallState) -> None:
            on_retry(state.attempt_number, state.upcoming_sleep)

        async for tried in self._retrying(again, tell):
            with tried:
                if tried.retry_state.attempt_number == 1:  # its first try was ours
                    raise failed
                return await attempt()
        raise AssertionError("tenacity ends by a result or by raising")

    def _retrying(
        self, again: Callable[[tenacity.RetryCallState], bool], tell: Callable[[tenacity.RetryCallState], None]
    ) -> tenacity.AsyncRetrying:
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self._policy.attempts),
            wait=self._wait_s,
            retry=again,
            before_sleep=tell,
            reraise=True,
        )
        return retrying if self._sleep is None else retrying.copy(sleep=self._sleep)

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        longest_s = min(self._policy.cap_s, self._policy.base_s * 2 ** (state.attempt_number - 1))
        return self._rng.uniform(0.0, longest_s)
