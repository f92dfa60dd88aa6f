"""The claims of operations.md, section 3, one by one."""

import asyncio
import random

import pytest

from shared.domain.errors import CircuitOpen
from shared.resilience.breaker import BreakerPolicy, CircuitBreakers, Outcome
from shared.resilience.hooks import BreakerChange
from tests.fakes.clock import FakeClock


class Failing(Exception):
    """Counts against the peer."""


class Refusing(Exception):
    """The peer answered: it is well."""


class Abstaining(Exception):
    """Says nothing about the peer."""


def classify(error: Exception) -> Outcome:
    match error:
        case Failing():
            return Outcome.FAILURE
        case Refusing():
            return Outcome.SUCCESS
        case _:
            return Outcome.NEUTRAL


class Peer:
    """Breakers of one peer, with the changes they told."""

    def __init__(self, *, failure_threshold: int = 5, hook_raises: bool = False) -> None:
        self.clock = FakeClock()
        self.changes: list[BreakerChange] = []
        self._hook_raises = hook_raises
        self.breakers = CircuitBreakers(
            peer="partitioner",
            policy=BreakerPolicy(failure_threshold=failure_threshold),
            classify=classify,
            on_change=self._changed,
            on_refusal=lambda: None,
            now=self.clock.now_s,
            rng=random.Random(7),
        )

    async def call(self, error: BaseException | None = None, *, operation: str = "control") -> None:
        async with self.breakers.guard(operation):
            if error is not None:
                raise error

    async def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(Failing):
                await self.call(Failing())

    async def opened(self) -> "Peer":
        await self.fail(5)
        return self

    async def half_open(self) -> "Peer":
        """Time has passed: the next call will be a probe."""
        await self.opened()
        await self.clock.advance(73)
        return self

    async def state(self) -> str:
        return await self.breakers.state("control")

    def _changed(self, change: BreakerChange) -> None:
        self.changes.append(change)
        if self._hook_raises:
            raise RuntimeError("a hook of somebody else")


async def test_five_failures_in_a_row_open_the_circuit_and_four_do_not() -> None:
    peer = Peer()
    await peer.fail(4)
    assert await peer.state() == "closed"
    await peer.fail(1)
    assert await peer.state() == "opened"


async def test_a_success_starts_the_count_anew() -> None:
    peer = Peer()
    await peer.fail(4)
    await peer.call()
    await peer.fail(4)
    assert await peer.state() == "closed"


async def test_a_refusal_counts_as_success() -> None:
    peer = Peer()
    await peer.fail(4)
    with pytest.raises(Refusing):
        await peer.call(Refusing())
    await peer.fail(4)
    assert await peer.state() == "closed"


async def test_neutral_results_neither_count_nor_reset() -> None:
    peer = Peer()
    await peer.fail(4)
    for error in (Abstaining(), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            await peer.call(error)
    assert await peer.state() == "closed"
    await peer.fail(1)
    assert await peer.state() == "opened"


async def test_an_open_circuit_stays_open_for_48_to_72_seconds_and_says_how_long() -> None:
    peer = await Peer().opened()
    with pytest.raises(CircuitOpen) as caught:
        await peer.call()
    assert caught.value.retry_after_s is not None
    assert 48 <= caught.value.retry_after_s <= 72
    await peer.clock.advance(47)
    with pytest.raises(CircuitOpen):
        await peer.call()
    await peer.clock.advance(26)
    await peer.call()


async def test_every_rejection_is_a_fresh_exception() -> None:
    peer = await Peer().opened()
    rejections = []
    for _ in range(2):
        with pytest.raises(CircuitOpen) as caught:
            await peer.call()
        rejections.append(caught.value)
    assert rejections[0] is not rejections[1]


async def test_of_200_concurrent_callers_two_probe_and_198_are_rejected() -> None:
    peer = await Peer().half_open()
    answer = asyncio.Event()
    admitted = 0

    async def caller() -> None:
        nonlocal admitted
        async with peer.breakers.guard("control"):
            admitted += 1
            await answer.wait()

    callers = [asyncio.create_task(caller()) for _ in range(200)]
    await peer.clock.settle()
    assert admitted == 2
    answer.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert sum(isinstance(result, CircuitOpen) for result in results) == 198
    assert await peer.state() == "closed"


async def test_one_successful_probe_leaves_it_half_open_and_the_second_closes_it() -> None:
    peer = await Peer().half_open()
    await peer.call()
    assert await peer.state() == "half-opened"
    await peer.call()
    assert await peer.state() == "closed"


async def test_a_failed_probe_opens_it_again_even_after_a_successful_one() -> None:
    peer = await Peer().half_open()
    await peer.call()
    await peer.fail(1)
    assert await peer.state() == "opened"
    with pytest.raises(CircuitOpen):
        await peer.call()


async def test_cancelled_probes_free_their_places() -> None:
    peer = await Peer().half_open()
    never = asyncio.Event()

    async def hang() -> None:
        async with peer.breakers.guard("control"):
            await never.wait()

    probes = [asyncio.create_task(hang()) for _ in range(2)]
    await peer.clock.settle()
    with pytest.raises(CircuitOpen):
        await peer.call()
    for probe in probes:
        probe.cancel()
    await asyncio.gather(*probes, return_exceptions=True)
    await peer.call()
    await peer.call()
    assert await peer.state() == "closed"


async def test_the_late_success_of_a_call_begun_before_the_opening_is_ignored() -> None:
    peer = Peer()
    answer = asyncio.Event()

    async def slow() -> None:
        async with peer.breakers.guard("control"):
            await answer.wait()

    late = asyncio.create_task(slow())
    await peer.clock.settle()
    await peer.half_open()
    await peer.call()
    answer.set()
    await late
    assert await peer.state() == "half-opened"


async def test_the_late_failure_of_an_earlier_generation_is_ignored() -> None:
    peer = Peer()
    answer = asyncio.Event()

    async def slow() -> None:
        async with peer.breakers.guard("control"):
            await answer.wait()
            raise Failing

    late = asyncio.create_task(slow())
    await peer.clock.settle()
    await peer.half_open()
    await peer.call()
    await peer.call()
    answer.set()
    with pytest.raises(Failing):
        await late
    await peer.fail(4)
    assert await peer.state() == "closed"


async def test_operations_have_breakers_of_their_own() -> None:
    peer = await Peer().opened()
    await peer.call(operation="link")


async def test_another_incarnation_starts_closed() -> None:
    peer = await Peer().opened()
    peer.breakers.reset()
    await peer.call()
    assert await peer.state() == "closed"


async def test_each_change_is_told_once_with_peer_and_operation() -> None:
    peer = await Peer().half_open()
    await peer.call()
    await peer.call()
    assert [change.state for change in peer.changes] == ["opened", "half-opened", "closed"]
    assert {(change.peer, change.operation) for change in peer.changes} == {("partitioner", "control")}


async def test_a_hook_that_raises_changes_nothing_for_the_caller() -> None:
    peer = await Peer(hook_raises=True).opened()
    assert await peer.state() == "opened"
    with pytest.raises(CircuitOpen):
        await peer.call()


async def test_a_probe_without_result_in_its_time_is_a_failed_one_and_its_late_success_is_ignored() -> None:
    peer = await Peer().half_open()
    answer = asyncio.Event()

    async def hang() -> None:
        async with peer.breakers.guard("control", limit_s=3.0):
            await answer.wait()

    probe = asyncio.create_task(hang())
    await peer.clock.settle()
    await peer.clock.advance(3)
    with pytest.raises(CircuitOpen) as caught:
        await peer.call()
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 48
    answer.set()
    await probe
    assert await peer.state() == "opened"


async def test_long_exchanges_that_go_well_close_the_circuit_before_they_end() -> None:
    peer = await Peer().half_open()
    end = asyncio.Event()

    async def exchange() -> None:
        async with peer.breakers.guard("control", limit_s=3.0) as admission:
            admission.proven()
            await end.wait()

    exchanges = [asyncio.create_task(exchange()) for _ in range(2)]
    await peer.clock.advance(60)
    assert await peer.state() == "closed"
    end.set()
    await asyncio.gather(*exchanges)


async def test_a_proven_probe_that_breaks_later_counts_against_the_peer() -> None:
    peer = await Peer().half_open()

    async def exchange() -> None:
        async with peer.breakers.guard("control") as admission:
            admission.proven()
            raise Failing

    with pytest.raises(Failing):
        await exchange()
    assert await peer.state() == "opened"


async def test_a_new_incarnation_is_told_as_closed_and_what_the_old_one_still_does_is_not() -> None:
    peer = Peer()
    answer = asyncio.Event()

    async def old() -> None:
        async with peer.breakers.guard("control"):
            await answer.wait()
            raise Failing

    late = [asyncio.create_task(old()) for _ in range(5)]
    await peer.clock.settle()
    await peer.opened()
    peer.breakers.reset()
    answer.set()
    await asyncio.gather(*late, return_exceptions=True)
    assert [change.state for change in peer.changes] == ["opened", "closed"]
    assert peer.breakers.views() == ()


async def test_an_operator_sees_what_a_breaker_knows() -> None:
    peer = Peer()
    await peer.fail(2)
    (closed,) = peer.breakers.views()
    assert (closed.operation, closed.state, closed.failures) == ("control", "closed", 2)
    await peer.fail(3)
    await peer.clock.advance(10)
    (opened,) = peer.breakers.views()
    assert opened.state == "opened"
    assert 38 <= opened.open_for_s <= 62


async def test_a_peer_known_to_answer_is_probed_at_once_and_a_failed_probe_closes_nothing() -> None:
    peer = await Peer().opened()
    with pytest.raises(CircuitOpen):
        await peer.call()
    peer.breakers.probe_now()
    await peer.fail(1)
    assert await peer.state() == "opened"
    peer.breakers.probe_now()
    for _ in range(2):
        await peer.call()
    assert await peer.state() == "closed"
    assert (await peer.opened()).breakers.views()[0].open_for_s > 0.0


async def test_that_a_peer_answers_tells_closed_circuits_nothing() -> None:
    peer = Peer()
    await peer.fail(4)
    peer.breakers.probe_now()
    await peer.fail(1)
    assert await peer.state() == "opened"
