"""20,000 random steps of the breaker beside an independently written one."""

import asyncio
import random

from shared.domain.errors import CircuitOpen
from shared.resilience.breaker import BreakerPolicy, CircuitBreakers, Outcome
from tests.unit.resilience.breaker_model import ReferenceBreaker

STEPS = 20_000
SEED = 20_261_124


class Failed(Exception):
    """Counts against the peer."""


class Undecided(Exception):
    """Says nothing."""


def classify(error: Exception) -> Outcome:
    return Outcome.FAILURE if isinstance(error, Failed) else Outcome.NEUTRAL


class Beside:
    """Ours and the reference, asked the same at the same time. Both draw openings from generators of one seed."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0.0
        seed = rng.randrange(2**32)
        drawn = random.Random(seed)
        self.ours = CircuitBreakers(
            peer="peer",
            policy=BreakerPolicy(),
            classify=classify,
            on_change=lambda change: None,
            on_refusal=lambda: None,
            now=lambda: self.now,
            rng=random.Random(seed),
        )
        self.reference = ReferenceBreaker(lambda: 60.0 * drawn.uniform(0.8, 1.2))
        self.calls: dict[int, tuple[asyncio.Task[None], asyncio.Future[None], int]] = {}
        self.begun = 0
        self.most_probes = 0
        self.seen: set[str] = set()

    async def step(self) -> None:
        match self.rng.choices(("begin", "end", "wait"), (5, 5, 2))[0]:
            case "begin":
                await self._begin()
            case "end" if self.calls:
                await self._end(self.rng.choice(list(self.calls)))
            case _:
                self.now += self.rng.choice((0.1, 1.0, 5.0, 30.0, 60.0))
        mode = await self.ours.state("control")
        assert mode == self.reference.mode
        self.seen.add(mode)
        self.most_probes = max(self.most_probes, *(view.probes for view in self.ours.views()), 0)

    async def _begin(self) -> None:
        self.begun += 1
        call, limit = self.begun, self.rng.choice((2.0, 10.0, 1_000.0))
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        admitted = asyncio.Event()

        async def run() -> None:
            async with self.ours.guard("control", limit_s=limit):
                admitted.set()
                await end

        task = asyncio.ensure_future(run())
        told = asyncio.ensure_future(admitted.wait())
        await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        epoch = self.reference.ask(call, self.now, limit)
        assert (epoch is not None) == admitted.is_set()
        if epoch is None:
            assert isinstance(task.exception(), CircuitOpen)
        else:
            self.calls[call] = task, end, epoch

    async def _end(self, call: int) -> None:
        task, end, epoch = self.calls.pop(call)
        outcome = self.rng.choices(("success", "failure", "neutral", "cancelled"), (4, 5, 1, 1))[0]
        match outcome:
            case "success":
                end.set_result(None)
            case "failure":
                end.set_exception(Failed())
            case "neutral":
                end.set_exception(Undecided())
            case _:
                task.cancel()
                outcome = "neutral"
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        self.reference.answer(call, epoch, outcome, self.now)


async def test_20000_random_steps_equal_those_of_the_reference() -> None:
    rng = random.Random(SEED)
    seen: set[str] = set()
    for _ in range(20):
        both = Beside(rng)
        for _ in range(STEPS // 20):
            await both.step()
        assert both.most_probes <= 2
        seen |= both.seen
        for task, _, _ in both.calls.values():
            task.cancel()
        await asyncio.gather(*(task for task, _, _ in both.calls.values()), return_exceptions=True)
    assert seen == {"closed", "half-opened", "opened"}
