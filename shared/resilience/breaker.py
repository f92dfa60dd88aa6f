"""A circuit breaker per operation of a peer: purgatory's states with what they lack.

Added here: `success_threshold`, at most that many probes while half open, neutral outcomes (a cancelled call says
nothing about the peer), results of an earlier generation ignored, a fresh exception per rejection, a monotonic
clock by constructor, one guarded hook. Everything lives in this process: a peer's health is one caller's view.
"""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from purgatory import AsyncCircuitBreakerFactory, ContextChanged
from purgatory.domain import model
from purgatory.domain.messages.commands import CreateCircuitBreaker
from purgatory.service._async.message_handlers import register_circuit_breaker
from purgatory.service._async.unit_of_work import AsyncAbstractUnitOfWork

from shared.domain.errors import CircuitOpen
from shared.resilience.hooks import BreakerChange, BreakerState, tell

PROBES_BUSY_RETRY_S = 0.05  # half open and all probes out: their answers are near


class Outcome(StrEnum):
    """What a call that raised says about the peer's health."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    failure_threshold: int = 5
    """Failures in a row that open the circuit."""
    open_s: float = 60.0
    open_spread: float = 0.2
    """Each opening lasts `open_s` times 1 ± this, so that callers do not come back together."""
    success_threshold: int = 2
    """Successes that close a half-open circuit, and the probes it lets out at once."""


class _Closed(model.ClosedState):
    def handle_exception(self, context: model.Context, exc: BaseException) -> None:
        self.failure_count += 1
        context.mark_failure(self.failure_count)
        if self.failure_count >= context.threshold:
            context.set_state(_Open(_ours(context)))


class _Open(model.OpenedState):
    def __init__(self, context: "_Context") -> None:
        super().__init__(context.name)
        spread = context.policy.open_spread
        self._until_s = context.now() + context.policy.open_s * context.rng.uniform(1 - spread, 1 + spread)

    def handle_new_request(self, context: model.Context) -> None:
        left_s = self._until_s - _ours(context).now()
        if left_s > 0:
            raise CircuitOpen(
                f"{_ours(context).label} failed before and is not asked for {left_s:.1f} s", retry_after_s=left_s
            )
        context.set_state(_HalfOpen())
        context.handle_new_request()


class _HalfOpen(model.HalfOpenedState):
    def __init__(self) -> None:
        self.in_flight = 0
        self._successes = 0

    def handle_new_request(self, context: model.Context) -> None:
        if self.in_flight + self._successes >= _ours(context).policy.success_threshold:
            raise CircuitOpen(f"{_ours(context).label} is being probed", retry_after_s=PROBES_BUSY_RETRY_S)
        self.in_flight += 1

    def handle_end_request(self, context: model.Context) -> None:
        self.in_flight -= 1
        self._successes += 1
        if self._successes >= _ours(context).policy.success_threshold:
            context.recover_failure()
            context.set_state(_Closed())

    def handle_exception(self, context: model.Context, exc: BaseException) -> None:
        self.in_flight -= 1
        context.set_state(_Open(_ours(context)))


class _Context(model.Context):
    def __init__(
        self, name: str, label: str, policy: BreakerPolicy, *, now: Callable[[], float], rng: random.Random
    ) -> None:
        super().__init__(name, policy.failure_threshold, policy.open_s)
        self.label = label
        self.policy, self.now, self.rng = policy, now, rng
        self._state: model.State = _Closed()

    def admit(self) -> model.State:
        """Let a call out or raise `CircuitOpen`; returns the generation that let it out."""
        self.handle_new_request()
        return self._state

    def settle(self, admitted_by: model.State, outcome: Outcome, error: BaseException | None) -> None:
        if outcome is Outcome.NEUTRAL:
            if isinstance(admitted_by, _HalfOpen):
                admitted_by.in_flight -= 1
        elif admitted_by is not self._state:
            return  # the result of an earlier generation
        elif outcome is Outcome.SUCCESS:
            self.handle_end_request()
        elif error is not None:
            self._state.handle_exception(self, error)


def _ours(context: model.Context) -> _Context:
    """purgatory hands its states the base class; every context here is made by `CircuitBreakers._register`."""
    return cast(_Context, context)


class CircuitBreakers:
    """The breakers of one peer, one per operation class, each starting closed."""

    def __init__(
        self,
        *,
        peer: str,
        policy: BreakerPolicy,
        classify: Callable[[Exception], Outcome],
        on_change: Callable[[BreakerChange], None],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """`classify`: what an exception says of the peer; cancellation is never asked about, it is neutral."""
        self._peer = peer
        self._policy = policy
        self._classify = classify
        self._on_change = on_change
        self._now = now
        self._rng = rng
        self._factory = self._new_factory()

    @asynccontextmanager
    async def guard(self, operation: str) -> AsyncIterator[None]:
        """Around one call. Raises `CircuitOpen`, with the seconds to wait, instead of letting it out."""
        factory = self._factory
        breaker = await factory.get_breaker(operation)
        context = _ours(breaker.context)
        try:
            admitted_by = context.admit()
        finally:
            await self._tell_changes(factory, context)
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            # Settled before anything is awaited: a second cancellation cannot keep a probe's place.
            context.settle(admitted_by, self._outcome(error), error)
            await self._tell_changes(factory, context)

    async def state(self, operation: str) -> BreakerState:
        breaker = await self._factory.get_breaker(operation)
        return breaker.context.state

    def reset(self) -> None:
        """The peer is a new one (another incarnation): forget what the old one did."""
        self._factory = self._new_factory()

    def _outcome(self, error: BaseException | None) -> Outcome:
        if error is None:
            return Outcome.SUCCESS
        return self._classify(error) if isinstance(error, Exception) else Outcome.NEUTRAL

    def _new_factory(self) -> AsyncCircuitBreakerFactory:
        factory = AsyncCircuitBreakerFactory(self._policy.failure_threshold, self._policy.open_s)
        factory.messagebus.remove_listener(CreateCircuitBreaker, register_circuit_breaker)
        factory.messagebus.add_listener(CreateCircuitBreaker, self._register)
        factory.messagebus.add_listener(ContextChanged, self._changed)
        return factory

    async def _register(self, command: CreateCircuitBreaker, uow: AsyncAbstractUnitOfWork) -> model.Context:
        context = _Context(command.name, f"{self._peer} ({command.name})", self._policy, now=self._now, rng=self._rng)
        await uow.contexts.register(context)
        return context

    async def _changed(self, event: ContextChanged, _: AsyncAbstractUnitOfWork) -> None:
        tell(self._on_change, BreakerChange(self._peer, event.name, event.state))

    async def _tell_changes(self, factory: AsyncCircuitBreakerFactory, context: _Context) -> None:
        while context.messages:
            await factory.messagebus.handle(context.messages.pop(0), factory.uow)
