"""Plays the history of a seed, from the start of its hosts until they have forgotten it."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random

from shared.contracts.scheduler import CancelReply, SubmitTask, Submitted
from shared.domain.errors import ButterflyError
from shared.domain.tail_state import TailState
from shared.domain.task_state import TaskState
from shared.registry.base import TaskRegistry
from shared.resilience.peer_group import PeerGroup
from tests.fakes.task_registry import MemoryTaskRegistry
from tests.simulation.seeded.checks import host_faults, is_over, task_faults
from tests.simulation.seeded.cluster import Cluster
from tests.simulation.seeded.fabric import Fabric
from tests.simulation.seeded.light import light_apps, no_events
from tests.simulation.seeded.remembered import remembered
from tests.simulation.seeded.story import Blow, BlowKind, Errand, Story, draw_story
from tests.simulation.seeded.trace import Trace
from tests.simulation.seeded.watch import Watch
from tests.simulation.world.virtual_time import VirtualClock, VirtualLoop, run

MakeRegistry = Callable[[Callable[[], float]], TaskRegistry]
"""From what gives Unix seconds."""
BETWEEN_STARTS_S = (0.0, 0.02)
LOOK_EVERY_S = 0.25
TRY_AGAIN_S = 0.5
ENDS_WITHIN_S = 60.0
"""After the network has healed."""
FORGETS_WITHIN_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""After the last answer: looks at what is left."""


@dataclass(frozen=True, slots=True)
class Outcome:
    story: Story
    violations: tuple[str, ...]
    ends: Counter[str]
    """Tasks by state and reason."""
    faults: Counter[str]
    epochs: int
    """Of all tasks."""
    num_events: int
    virtual_s: float
    digest: str
    """Of the trace."""
    tail: tuple[str, ...]


class Trial:
    def __init__(self, story: Story, home: Path, *, make_registry: MakeRegistry) -> None:
        """`home`: `prepare_home`. To be made on a virtual loop."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop), "a history needs virtual time"
        rng = Random(f"fate {story.seed}")
        clock = VirtualClock(loop)
        self._story, self._clock = story, clock
        self._trace = Trace(clock.now_s)
        self._violations: list[str] = []
        self._fabric = Fabric(story.noise, story.latency_s, Random(rng.getrandbits(64)), self._trace, loop.pause)
        self._registry = make_registry(clock.wall_s)
        self._watch = Watch(self._registry, self._violated)
        self._cluster = Cluster(
            home,
            story,
            fabric=self._fabric,
            trace=self._trace,
            rng=rng,
            registry=self._registry,
            watch=self._watch,
            clock=clock,
            loop=loop,
        )
        self._rng = rng
        self._is_healed = asyncio.Event()

    async def play(self) -> Outcome:
        story, cluster = self._story, self._cluster
        for name in story.hosts:
            await asyncio.sleep(self._rng.uniform(*BETWEEN_STARTS_S))  # no two have their timers at the same instants
            cluster.start(name)
        async with asyncio.TaskGroup() as group:
            for blow in story.blows:
                group.create_task(self._strike(blow))
            group.create_task(self._heal())
            accepted = [group.create_task(self._want(errand)) for errand in story.errands]
        if all(task.result() for task in accepted) and await self._all_end():
            await self._all_forget()
            for errand in story.errands:
                for what in await task_faults(
                    errand, self._registry, cluster.receipts, num_faults=self._trace.faults.total() + len(story.blows)
                ):
                    self._violated(what)
            if story.is_quiet:
                await self._check_quiet()
            for standing in await cluster.standings.all():
                self._violated(f"an honest node was put out: {standing}")
        outcome = await self._outcome()
        cluster.end()
        return outcome

    # --- what happens

    async def _strike(self, blow: Blow) -> None:
        cluster, fabric = self._cluster, self._fabric
        await asyncio.sleep(blow.at_s)
        self._trace.fault(blow.kind, f"{' '.join(blow.hosts)} / {' '.join(blow.others)} for {blow.for_s:.3f} s")
        match blow.kind:
            case BlowKind.KILL:
                cluster.kill(blow.hosts[0])
                await asyncio.sleep(blow.for_s)
                cluster.start(blow.hosts[0])
            case BlowKind.STOP:
                await cluster.stop(blow.hosts[0])
                await asyncio.sleep(blow.for_s)
                cluster.start(blow.hosts[0])
            case BlowKind.HANG:
                cluster.hold(blow.hosts[0])
                await asyncio.sleep(blow.for_s)
                cluster.let_go(blow.hosts[0])
            case BlowKind.CUT | BlowKind.DEAF:
                ways = [(other, host) for host in blow.hosts for other in blow.others]
                if blow.kind is BlowKind.CUT:
                    ways += [(host, other) for other, host in ways]
                for way in ways:
                    fabric.cut(*way)
                await asyncio.sleep(blow.for_s)
                for way in ways:
                    fabric.mend(*way)

    async def _heal(self) -> None:
        await asyncio.sleep(self._story.heals_at_s)
        self._fabric.heal()
        self._trace.note("healed")
        self._is_healed.set()

    async def _want(self, errand: Errand) -> bool:
        """Whether the task was accepted."""
        await asyncio.sleep(errand.at_s)
        self._watch.expect(errand.task.task_id)
        schedulers = self._cluster.schedulers()
        limit_s = self._story.heals_at_s + ENDS_WITHIN_S
        reason = ""
        while self._clock.now_s() < limit_s:
            try:
                await schedulers.post("/tasks", SubmitTask(task=errand.task), Submitted, idempotent=True)
            except ButterflyError as error:
                reason = f"{error.code}: {error.message}"
                await asyncio.sleep(TRY_AGAIN_S)
            else:
                self._trace.note(f"accepted {errand.task.task_id}")
                if errand.cancel_after_s is not None:
                    await self._cancel(errand, schedulers, errand.cancel_after_s)
                return True
        self._violated(f"{errand.task.task_id} was never accepted: {reason}")
        return False

    async def _cancel(self, errand: Errand, schedulers: PeerGroup, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while True:
            try:
                await schedulers.post(f"/tasks/{errand.task.task_id}/cancel", None, CancelReply, idempotent=True)
            except ButterflyError:
                await asyncio.sleep(TRY_AGAIN_S)
            else:
                return

    # --- how it ends

    async def _all_end(self) -> bool:
        limit_s = self._story.heals_at_s + ENDS_WITHIN_S
        while True:
            records = [await self._registry.record(errand.task.task_id) for errand in self._story.errands]
            open_ones = [record for record in records if not is_over(record)]
            if not open_ones:
                return True
            if self._clock.now_s() > limit_s:
                for record in open_ones:
                    self._violated(f"{record.task.task_id} does not end: it is {record.state}, epoch {record.epoch}")
                return False
            await asyncio.sleep(LOOK_EVERY_S)

    async def _all_forget(self) -> None:
        await self._is_healed.wait()
        left: list[str] = []
        for wait_s in FORGETS_WITHIN_S:
            await asyncio.sleep(wait_s)
            left = []
            for name in self._story.hosts:
                if name.startswith(("worker", "coordinator")):
                    async with aclosing(self._cluster.client(name)) as peer:
                        left += await host_faults(name, peer, num_workers=self._story.num_workers)
            if not left:
                return
        for what in left:
            self._violated(f"left behind: {what}")

    async def _check_quiet(self) -> None:
        for errand in self._story.errands:
            record = await self._registry.record(errand.task.task_id)
            audits = record.tail_audit is not TailState.NONE
            is_twice = record.attempt > 1 or record.epoch > 1 + audits
            if record.state is TaskState.COMPLETED and is_twice:
                self._violated(f"{errand.task.task_id} took {record.attempt} attempts and {record.epoch} epochs")

    def _violated(self, what: str) -> None:
        self._trace.note(f"VIOLATION {what}")
        self._violations.append(what)

    async def _outcome(self) -> Outcome:
        ends: Counter[str] = Counter()
        epochs = 0
        for errand in self._story.errands:
            try:
                record = await self._registry.record(errand.task.task_id)
            except ButterflyError:
                ends["never accepted"] += 1
                continue
            ends[f"{record.state} {record.error_code or ''}".strip()] += 1
            epochs += record.epoch
        trace = self._trace
        return Outcome(
            story=self._story,
            violations=tuple(self._violations),
            ends=ends,
            faults=trace.faults,
            epochs=epochs,
            num_events=trace.num_events,
            virtual_s=self._clock.now_s(),
            digest=trace.digest,
            tail=tuple(trace.tail),
        )


def play(
    seed: int,
    home: Path,
    *,
    make_registry: MakeRegistry = MemoryTaskRegistry,
    whole_apps: bool = False,
) -> Outcome:
    """`home`: `prepare_home`. `whole_apps`: with FastAPI around every service, at a tenth of the pace."""

    async def main() -> Outcome:
        return await Trial(draw_story(seed), home, make_registry=make_registry).play()

    with no_events(), remembered(), nullcontext() if whole_apps else light_apps():
        return run(main())
