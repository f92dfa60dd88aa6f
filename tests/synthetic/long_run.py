"""`python -m tests.synthetic.long_run [KIND …]`: many windows under each kind of lie; prints a table.

Each kind gets a world of its own (`tests.simulation.world`): the real services and workers on one event loop in virtual
time, the workers compute the synthetic model, and one worker more lies at random moments. Found out, it comes back as a
new node. Exit code 1 if a wrong token was committed, an honest worker was evicted, a liar that can be proven guilty was
not, or no lie was told.
"""

import argparse
import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

from shared.contracts.base import Empty
from shared.contracts.coordinator import NodeList, NodeView
from shared.domain.errors import ButterflyError
from shared.domain.ids import NodeId
from shared.domain.session import NodeState
from shared.resilience.http_client import PeerClient
from shared.runtime.config import CoordinationConfig
from tests.simulation.world.virtual_time import run
from tests.simulation.world.world import World, write_model
from tests.synthetic.kinds import KINDS, LieKind
from tests.synthetic.liars import Liars
from tests.synthetic.load import Clients, Tally

HONEST_WORKERS = 3
STAGES = 3
TASKS_AT_ONCE = 8
CHANCE = 0.02
LOOK_EVERY_S = 0.1
COORDINATION = CoordinationConfig(
    # As small as windows get, so that there are many.
    checkpoint_interval=1,
    window_checkpoints=2,
    heartbeat_ms=250,
    lease_ms=5_000,
)
KEPT_AWAY = frozenset({NodeState.EVICTED, NodeState.QUARANTINED})


@dataclass
class Outcome:
    kind: str
    is_attributable: bool
    tally: Tally
    lies: int = 0
    liars: int = 0
    """Nodes that lied at least once."""
    evicted: int = 0
    """Of these."""
    quarantined: int = 0
    """Of these, by marks."""
    honest_evicted: int = 0
    honest_quarantined: int = 0
    """Times."""
    seats: int = 0
    """Of every stage in both roles, executor and auditor: those that liars signed for."""
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    """Why liars were evicted."""

    @property
    def faults(self) -> list[str]:
        """What must not be. The last liar may just not have been found out yet."""
        found = []
        if self.tally.wrong_tokens or self.tally.wrong_tasks:
            found.append(f"{self.tally.wrong_tokens} WRONG TOKENS")
        if self.honest_evicted:
            found.append(f"{self.honest_evicted} HONEST EVICTED")
        if self.is_attributable and self.liars > self.evicted + 1:
            found.append(f"{self.liars - self.evicted} LIARS NOT EVICTED")
        if not self.lies:
            found.append("NO LIE TOLD")
        return found


class Watch:
    """Looks at the nodes as an operator would: honest ones that were put in quarantine are let in again."""

    def __init__(self, coordinator: PeerClient) -> None:
        self._coordinator = coordinator
        self.nodes: dict[NodeId, NodeView] = {}
        self.liars: set[NodeId] = set()
        self.honest_quarantined = 0

    def is_kept_away(self, node_id: NodeId) -> bool:
        node = self.nodes.get(node_id)
        return node is not None and node.state in KEPT_AWAY

    async def look(self) -> None:
        try:
            listed = await self._coordinator.get("/nodes", NodeList)
            self.nodes = {node.node_id: node for node in listed.nodes}
            for node in listed.nodes:
                if node.state is NodeState.QUARANTINED and node.node_id not in self.liars:
                    self.honest_quarantined += 1
                    await self._coordinator.post(f"/nodes/{node.node_id}/reinstate", None, Empty)
        except ButterflyError:
            pass  # the next look may find it


async def play(kind: str, folder: Path, *, windows: int, seed: int) -> Outcome:
    """`folder` holds the model (`write_model`)."""
    rng, lie = Random(f"{seed} {kind}"), KINDS[kind]
    began_s = time.process_time()
    world = World(folder, rng, coordination=COORDINATION, stages=STAGES)
    await world.start(HONEST_WORKERS)
    liars = Liars(world, lie, chance=CHANCE, rng=rng)
    coordinator = world.client("coordinator")
    watch, is_over = Watch(coordinator), asyncio.Event()
    async with aclosing(coordinator), aclosing(Clients(world, rng)) as clients:

        async def look_on() -> None:
            while not is_over.is_set():
                watch.liars = {liar.node_id for liar in liars.all}
                await watch.look()
                await asyncio.sleep(LOOK_EVERY_S)

        def is_enough() -> bool:
            return clients.tally.windows >= windows

        async with asyncio.TaskGroup() as group:
            group.create_task(look_on())
            group.create_task(liars.live(is_over.is_set, watch.is_kept_away))
            await clients.ask(TASKS_AT_ONCE, is_enough)
            await watch.look()
            is_over.set()
        await world.stop()
        return _outcome(kind, lie, clients.tally, liars, watch, time.process_time() - began_s)


def _outcome(kind: str, lie: LieKind, tally: Tally, liars: Liars, watch: Watch, seconds: float) -> Outcome:
    outcome = Outcome(kind, lie.is_convicted, tally, honest_quarantined=watch.honest_quarantined, seconds=seconds)
    outcome.seats = len({(lane > 0, stage) for liar in liars.all for lane, stage in liar.told.receipts})
    for liar in liars.all:
        node = watch.nodes.get(liar.node_id)
        outcome.lies += liar.told.lies
        outcome.liars += liar.told.lies > 0
        if node is not None and node.state is NodeState.EVICTED:
            outcome.evicted += 1
            outcome.reasons[node.reason] = outcome.reasons.get(node.reason, 0) + 1
        outcome.quarantined += node is not None and node.state is NodeState.QUARANTINED
    liar_ids = {liar.node_id for liar in liars.all}
    outcome.honest_evicted = sum(
        node.state is NodeState.EVICTED for node in watch.nodes.values() if node.node_id not in liar_ids
    )
    return outcome


def run_kind(kind: str, *, windows: int, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_model(folder / "models")
        return run(play(kind, folder, windows=windows, seed=seed))


HEADER = (
    f"{'kind':<16}{'windows':>8}{'lies':>6}{'wrong':>6}{'liars':>6}{'evicted':>8}{'quarant.':>9}{'honest out':>11}"
    f"{'seats':>6}{'tasks':>7}{'again':>6}{'failed':>7}{'win/s':>7}  verdict"
)


def line_of(outcome: Outcome) -> str:
    tally = outcome.tally
    return (
        f"{outcome.kind:<16}{tally.windows:>8}{outcome.lies:>6}{tally.wrong_tokens:>6}{outcome.liars:>6}"
        f"{outcome.evicted:>8}{outcome.quarantined:>9}{outcome.honest_evicted:>11}"
        f"{outcome.seats:>4}/{2 * STAGES}{tally.right_tasks:>7}{tally.retried_tasks:>6}{tally.failed.total():>7}"
        f"{tally.windows / outcome.seconds:>7.0f}  {', '.join(outcome.faults) or 'as it should be'}"
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.synthetic.long_run", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), help="default: all", metavar="KIND")
    parser.add_argument("--windows", type=int, default=10_000, help="committed, of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of tasks and lies (%(default)s)")
    asked = parser.parse_args(arguments)
    unknown = [name for name in asked.kinds if name not in KINDS]
    if unknown:
        parser.error(f"unknown kind {unknown[0]}; there are {', '.join(KINDS)}")
    print(
        f"seed {asked.seed}: {HONEST_WORKERS} honest workers and one liar, {STAGES} stages, f = 1\n{HEADER}", flush=True
    )
    is_bad = False
    # Of what the liars do, every service tells.
    quiet = ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=logging.disable)
    with quiet as pool:
        for outcome in pool.map(partial(run_kind, windows=asked.windows, seed=asked.seed), asked.kinds):
            is_bad = is_bad or bool(outcome.faults)
            print(line_of(outcome), flush=True)
            for what, count in (*outcome.tally.failed.items(), *sorted(outcome.reasons.items())):
                print(f"    {count} x {what}")
            if outcome.honest_quarantined:
                print(f"    {outcome.honest_quarantined} x an honest node was quarantined by marks, and reinstated")
    return 1 if is_bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
