"""A circuit breaker per operation of a peer: purgatory's states with what they lack.

Added here: `success_threshold`, at most that many probes while half open, each with a deadline, neutral outcomes (a
cancelled call says nothing about the peer), results of an earlier generation ignored, a fresh exception per
rejection, a monotonic clock by constructor, one guarded hook. Everything lives in this process: a peer's health is
one caller's view.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import cast

from purgatory import AsyncCircuitBreakerFactory, ContextChanged
from purgatory.domain import model
from purgatory.domain.messages.commands import CreateCircuitBreaker
from purgatory.service._async.message_handlers import register_circuit_breaker
from purgatory.service._async.unit_of_work import AsyncAbstractUnitOfWork

from shared.contracts.peer_state import BreakerState, BreakerView
from shared.domain.errors import CircuitOpen
from shared.resilience.hooks import BreakerChange, tell

PROBES_BUSY_RETRY_S = 0.05  # half open and all probes out: their answers are near
PROBE_LIMIT_S = 15.0  # for calls that name no limit of their own


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
        self.until_s = context.now() + context.policy.open_s * context.rng.uniform(1 - spread, 1 + spread)

    def handle_new_request(self, context: model.Context) -> None:
        left_s = self.until_s - _ours(context).now()
        if left_s > 0:
            raise CircuitOpen(
                f"{_ours(context).label} failed before and is not asked for {left_s:.1f} s", retry_after_s=left_s
            )
        context.set_state(_HalfOpen())
        context.handle_new_request()


class _HalfOpen(model.HalfOpenedState):
    def __init__(self) -> None:
        self.probes: set[Admission] = set()
        self._successes = 0

    def handle_new_request(self, context: model.Context) -> None:
        ours = _ours(context)
        if any(probe.until_s <= ours.now() for probe in self.probes):
            context.set_state(_Open(ours))  # a probe without result in its time is a failed one
            context.handle_new_request()
        if len(self.probes) + self._successes >= ours.policy.success_threshold:
            raise CircuitOpen(f"{ours.label} is being probed", retry_after_s=PROBES_BUSY_RETRY_S)

    def handle_end_request(self, context: model.Context) -> None:
        self._successes += 1
        if self._successes >= _ours(context).policy.success_threshold:
            context.recover_failure()
            context.set_state(_Closed())

    def handle_exception(self, context: model.Context, exc: BaseException) -> None:
        context.set_state(_Open(_ours(context)))


class Admission:
    """One call that was let out."""

    def __init__(self, context: "_Context", generation: model.State, until_s: float) -> None:
        self.generation = generation
        self.until_s = until_s
        self.was_proven = False
        self.context = context

    def proven(self) -> None:
        """A long exchange goes well so far: as a probe it has succeeded and need not end first."""
        self.context.prove(self)


class _Context(model.Context):
    def __init__(
        self, name: str, label: str, policy: BreakerPolicy, *, now: Callable[[], float], rng: random.Random
    ) -> None:
        super().__init__(name, policy.failure_threshold, policy.open_s)
        self.label = label
        self.policy, self.now, self.rng = policy, now, rng
        self._state: model.State = _Closed()

    def admit(self, limit_s: float) -> Admission:
        """Let a call out or raise `CircuitOpen`. `limit_s`: by when a probe must have its result."""
        self.handle_new_request()
        admission = Admission(self, self._state, self.now() + limit_s)
        if isinstance(self._state, _HalfOpen):
            self._state.probes.add(admission)
        return admission

    def prove(self, admission: Admission) -> None:
        if not isinstance(admission.generation, _HalfOpen) or admission.was_proven:
            return
        self.settle(admission, Outcome.SUCCESS, None)
        admission.was_proven = True
        if not isinstance(self._state, _Open):
            admission.generation = self._state  # should it break after all, that counts against the peer

    def settle(self, admission: Admission, outcome: Outcome, error: BaseException | None) -> None:
        generation, is_failure = admission.generation, outcome is Outcome.FAILURE
        if isinstance(generation, _HalfOpen):
            generation.probes.discard(admission)
        if outcome is Outcome.NEUTRAL or generation is not self._state:
            return  # says nothing, or is the result of an earlier generation
        if isinstance(generation, _HalfOpen) and not is_failure:
            if admission.was_proven:
                return  # counted already
            is_failure = admission.until_s <= self.now()
        if is_failure:
            self._state.handle_exception(self, error or TimeoutError())
        else:
            self.handle_end_request()

    def probe_now(self) -> None:
        if isinstance(self._state, _Open):
            self._state.until_s = self.now()

    def view(self) -> BreakerView:
        state = self._state
        return BreakerView(
            operation=self.name,
            state=self.state,
            failures=state.failure_count if isinstance(state, _Closed) else 0,
            probes=len(state.probes) if isinstance(state, _HalfOpen) else 0,
            open_for_s=max(0.0, state.until_s - self.now()) if isinstance(state, _Open) else 0.0,
        )


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
        on_refusal: Callable[[], None],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """`classify`: what an exception says of the peer; cancellation is never asked about, it is neutral.
        `on_refusal` hears of each call that is not let out."""
        self._peer = peer
        self._policy = policy
        self._classify = classify
        self._on_change = on_change
        self._on_refusal = on_refusal
        self._now = now
        self._rng = rng
        self._contexts: dict[str, _Context] = {}
        self._factory = self._new_factory()

    def guard(self, operation: str, *, limit_s: float = PROBE_LIMIT_S) -> "Guard":
        """For one call. `limit_s`: a probe without result by then is a failed one."""
        return Guard(self, operation, limit_s)

    async def admit(self, operation: str, limit_s: float) -> Admission:
        """Let a call out: `settle` must follow. Raises `CircuitOpen`."""
        context = self._contexts.get(operation) or _ours((await self._factory.get_breaker(operation)).context)
        try:
            return context.admit(limit_s)
        except CircuitOpen:
            self._on_refusal()
            raise
        finally:
            await self._tell_changes(context)

    async def settle(self, admission: Admission, error: BaseException | None) -> None:
        """What became of the call. Nothing is awaited before it counts: a second cancellation cannot keep a probe's
        place."""
        admission.context.settle(admission, self._outcome(error), error)
        await self._tell_changes(admission.context)

    async def state(self, operation: str) -> BreakerState:
        breaker = await self._factory.get_breaker(operation)
        return breaker.context.state

    def views(self) -> tuple[BreakerView, ...]:
        """One per operation class that was used, in alphabetical order."""
        return tuple(context.view() for _, context in sorted(self._contexts.items()))

    def probe_now(self) -> None:
        """The peer is known to answer: open circuits let their probes out at once instead of later."""
        for context in self._contexts.values():
            context.probe_now()

    def reset(self) -> None:
        """The peer is a new one (another incarnation): forget what the old one did."""
        forgotten, self._contexts = self._contexts, {}
        self._factory = self._new_factory()
        for operation, context in forgotten.items():
            if context.state != "closed":
                tell(self._on_change, BreakerChange(self._peer, operation, "closed"))

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
        self._contexts[command.name] = context
        return context

    async def _changed(self, event: ContextChanged, _: AsyncAbstractUnitOfWork) -> None:
        tell(self._on_change, BreakerChange(self._peer, event.name, event.state))

    async def _tell_changes(self, context: _Context) -> None:
        while context.messages:
            message = context.messages.pop(0)
            if self._contexts.get(context.name) is context:  # else of an incarnation that is gone
                await self._factory.messagebus.handle(message, self._factory.uow)


class Guard:
    """Around one call: `CircuitOpen`, with the seconds to wait, is raised instead of letting it out."""

    __slots__ = ("_admission", "_breakers", "_limit_s", "_operation")

    def __init__(self, breakers: CircuitBreakers, operation: str, limit_s: float) -> None:
        self._breakers, self._operation, self._limit_s = breakers, operation, limit_s

    async def __aenter__(self) -> Admission:
        self._admission = await self._breakers.admit(self._operation, self._limit_s)
        return self._admission

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._breakers.settle(self._admission, error)
