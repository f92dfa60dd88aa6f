"""Does to a cluster what its schedule says, and undoes it."""

import asyncio
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.cluster import ChaosCluster
from tests.chaos.schedule import Fault, Strike

_CALLS = {Fault.ISOLATE, Fault.MUTE}
_CALLED = {Fault.ISOLATE, Fault.DEAFEN}


@dataclass
class Nemesis:
    cluster: ChaosCluster
    began_s: float = field(default_factory=time.monotonic)
    done: list[tuple[float, Strike]] = field(default_factory=list)
    """What met its process, and when."""

    async def strike_all(self, schedule: Sequence[Strike]) -> None:
        async with asyncio.TaskGroup() as group:
            for strike in schedule:
                group.create_task(self._strike(strike))

    async def _strike(self, strike: Strike) -> None:
        await asyncio.sleep(max(0.0, self.began_s + strike.at_s - time.monotonic()))
        at_s = time.monotonic() - self.began_s
        if strike.fault is Fault.KILL:
            was_there = self.cluster.send(strike.process, signal.SIGKILL)
        elif strike.fault is Fault.HANG:
            was_there = await self._hang(strike)
        else:
            was_there = await self._cut(strike)
        if was_there:
            self.done.append((at_s, strike))

    async def _hang(self, strike: Strike) -> bool:
        if not self.cluster.send(strike.process, signal.SIGSTOP):
            return False
        try:
            await asyncio.sleep(strike.lasts_s)
        finally:
            self.cluster.send(strike.process, signal.SIGCONT)
        return True

    async def _cut(self, strike: Strike) -> bool:
        edges = self.cluster.edges_of(strike.process, calls=strike.fault in _CALLS, called=strike.fault in _CALLED)
        for edge in edges:
            edge.cut(strike)
        try:
            await asyncio.sleep(strike.lasts_s)
        finally:
            for edge in edges:
                edge.heal(strike)
        return bool(edges)
