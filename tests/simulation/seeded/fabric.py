"""What becomes of what is sent: between hosts, and between a host and the store."""

from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar, cast

import httpx

from shared.domain.errors import RegistryUnavailable
from tests.simulation.seeded.story import QUIET, STORE, Noise
from tests.simulation.seeded.trace import Trace
from tests.simulation.world.network import Fate, Weather

T = TypeVar("T")

LATE_S = (0.02, 1.5)
SILENCE_S = 3.0
"""Beyond all limits of those who wait for an answer."""
LOOK_EVERY_S = 0.05
STORE_LATENCY_S = (0.000_5, 0.005)
STORE_SILENCE_S = 1.0


class Fabric(Weather):
    """The network and the way to the store. `noise` until `heal`; cuts until they are lifted."""

    def __init__(
        self,
        noise: Noise,
        latency_s: tuple[float, float],
        rng: Random,
        trace: Trace,
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._noise, self._latency_s, self._rng, self._trace, self._pause = noise, latency_s, rng, trace, pause
        self._cuts: Counter[tuple[str, str]] = Counter()

    def cut(self, sender: str, receiver: str) -> None:
        """One way. Cuts add up."""
        self._cuts[sender, receiver] += 1

    def mend(self, sender: str, receiver: str) -> None:
        self._cuts[sender, receiver] -= 1
        self._cuts += Counter()

    def heal(self) -> None:
        self._noise = QUIET
        self._cuts.clear()

    def is_cut(self, sender: str, receiver: str) -> bool:
        return bool(self._cuts) and (sender, receiver) in self._cuts

    # --- between hosts

    def request(self, sender: str, receiver: str) -> Fate:
        self._trace.note(f"{sender} > {receiver}")
        return self._travel(sender, receiver, self._noise.lost, "lost")

    def answer(self, sender: str, receiver: str) -> Fate:
        return self._travel(sender, receiver, self._noise.unanswered, "unanswered")

    async def chunk(self, sender: str, receiver: str) -> None:
        """A stream waits for a cut to be mended: what carries it sends again."""
        await self._pause(self._rng.uniform(*self._latency_s))
        silent_s = 0.0
        while self.is_cut(sender, receiver):
            if silent_s == 0.0:
                self._trace.fault("chunk stuck", f"{sender} > {receiver}")
            if silent_s >= SILENCE_S:
                raise httpx.ReadError("the connection broke")
            await self._pause(LOOK_EVERY_S)
            silent_s += LOOK_EVERY_S

    def _travel(self, sender: str, receiver: str, lost: float, what: str) -> Fate:
        rng = self._rng
        if self.is_cut(sender, receiver):
            self._trace.fault("cut off", f"{sender} > {receiver}")
            return Fate(SILENCE_S, is_lost=True)
        if lost and rng.random() < lost:
            self._trace.fault(what, f"{sender} > {receiver}")
            return Fate(rng.choice((0.0, SILENCE_S)), is_lost=True)
        if self._noise.late and rng.random() < self._noise.late:
            self._trace.fault("late", f"{sender} > {receiver}")
            return Fate(rng.uniform(*LATE_S), is_lost=False)
        return Fate(rng.uniform(*self._latency_s), is_lost=False)

    # --- to the store

    async def stored(self, host: str, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call to the store. Raises `RegistryUnavailable`."""
        rng, noise = self._rng, self._noise
        await self._pause(rng.uniform(*STORE_LATENCY_S))
        if self.is_cut(host, STORE) or (noise.store_lost and rng.random() < noise.store_lost):
            self._trace.fault("store lost", f"{host} {name}")
            await self._no_answer()
        self._trace.note(f"{host} {name}")
        result = await call()
        if noise.store_twice and rng.random() < noise.store_twice:
            self._trace.fault("store twice", f"{host} {name}")
            result = await call()
        if self.is_cut(STORE, host) or (noise.store_unanswered and rng.random() < noise.store_unanswered):
            self._trace.fault("store unanswered", f"{host} {name}")
            await self._no_answer()
        return result

    async def _no_answer(self) -> None:
        await self._pause(STORE_SILENCE_S)
        raise RegistryUnavailable("the task registry does not answer", retry_after_s=1.0)


# Any: whatever a method of a store takes and returns.
Through = Callable[[str, tuple[Any, ...], Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""Name, positional arguments, and the call itself."""


def over(port: Callable[..., T], store: object, through: Through, *, plain: frozenset[str] = frozenset()) -> T:
    """`store` as one process reaches it: every method of `port`, an abstract class, goes `through`, but for those that
    are `plain`."""
    assert isinstance(port, type)

    def method(name: str) -> Callable[..., Awaitable[object]]:
        own = getattr(store, name)

        async def call(_: object, *args: object, **options: object) -> object:
            return await through(name, args, lambda: own(*args, **options))

        async def plain_call(_: object, *args: object, **options: object) -> object:
            return await own(*args, **options)

        return plain_call if name in plain else call

    names: frozenset[str] = port.__abstractmethods__  # type: ignore[attr-defined]  # of every abstract class
    return cast(T, type(port.__name__, (port,), {name: method(name) for name in sorted(names)})())
