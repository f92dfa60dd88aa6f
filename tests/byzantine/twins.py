"""Two processes with one key, and each a copy of the data folder: one Byzantine node, whatever they do."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tests.byzantine.clusters import ask_all, joined_worker, key_for, nodes, states, wait_ready
from tests.byzantine.roles import Cell
from tests.e2e.running import Cluster

ROUNDS = 3
SEAT = Cell(1, "executor")


@dataclass(frozen=True, slots=True)
class TwinsOutcome:
    wrong: int
    failures: tuple[str, ...]
    most_at_once: int
    """Nodes listed beside those that were there before."""
    state: str
    honest_evicted: int

    @property
    def faults(self) -> tuple[str, ...]:
        found = []
        if self.wrong:
            found.append(f"{self.wrong} WRONG ANSWERS")
        if self.failures:
            found.append(f"{len(self.failures)} FAILED TASKS ({self.failures[0][:200]})")
        if self.most_at_once > 1:
            found.append(f"{self.most_at_once} NODES OF ONE KEY")
        if self.honest_evicted:
            found.append(f"{self.honest_evicted} HONEST EVICTED")
        return tuple(found)


def play_twins(cluster: Cluster, *, right: Sequence[list[int]], number: int) -> TwinsOutcome:
    """Both do honest work, and both say that they are the node. `number`: of the first of them in the cluster."""
    folders = [cluster.data_dir / "liars" / f"twin-{name}" for name in ("a", "b")]
    before = states(cluster)
    honest = [node_id for node_id, state in before.items() if state != "evicted"]
    twin = key_for(SEAT, honest, folders[0])
    shutil.copytree(folders[0], folders[1])
    wrong, most_at_once = 0, 0
    failures: list[str] = []
    with ExitStack() as running:
        for index, folder in enumerate(folders):
            worker = joined_worker(cluster, ["services.worker"], folder, number=number + index)
            wait_ready(cluster, twin, running.enter_context(worker), folder)
        for _ in range(ROUNDS):
            for answer, expected in zip(ask_all(cluster), right, strict=True):
                if isinstance(answer, str):
                    failures.append(answer)
                else:
                    wrong += answer != expected
            seen = nodes(cluster)
            most_at_once = max(most_at_once, sum(node not in before for node in seen))
        seen = nodes(cluster)
        evicted = sum(seen.get(node_id, {}).get("state") == "evicted" for node_id in honest)
        return TwinsOutcome(wrong, tuple(failures), most_at_once, str(seen.get(twin, {}).get("state", "gone")), evicted)
