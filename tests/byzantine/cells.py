"""One liar at one seat: what it told, and what became of it."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.byzantine.attacks import ATTACKS
from tests.byzantine.clusters import ask_all, joined_worker, key_for, nodes, states, wait_ready
from tests.byzantine.roles import LIES, Cell
from tests.e2e.running import Cluster, until

MAX_ROUNDS = 8
EVICTED_WITHIN_S = 5.0
GONE_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Outcome:
    attack: str
    cell: Cell
    lies: int
    windows: int
    """Different windows lied about."""
    wrong: int
    """Answers with other tokens than the whole model gives."""
    failures: tuple[str, ...]
    """Tasks that did not complete: why."""
    rounds: int
    liar: str
    liar_state: str
    reason: str
    """Why the liar is where it is."""
    honest_evicted: int
    took_s: float

    @property
    def faults(self) -> tuple[str, ...]:
        """What should not have been."""
        found = []
        is_provable = ATTACKS[self.attack].is_convicted
        if self.wrong:
            found.append(f"{self.wrong} WRONG ANSWERS")
        if self.failures:
            found.append(f"{len(self.failures)} FAILED TASKS ({self.failures[0][:200]})")
        if self.honest_evicted:
            found.append(f"{self.honest_evicted} HONEST EVICTED")
        if not self.lies:
            found.append("NO LIE WAS TOLD")
        if is_provable and self.liar_state != "evicted":
            found.append("NOT CONVICTED")
        if not is_provable and self.liar_state == "evicted":
            found.append("CONVICTED WITHOUT PROOF")
        return tuple(found)


def play(cluster: Cluster, attack: str, cell: Cell, *, right: Sequence[list[int]], number: int) -> Outcome:
    """A liar joins, at this seat, and leaves; all questions are asked until it has lied and has been judged. `number`:
    of the liar among those of the cluster."""
    began_s = time.monotonic()
    data_dir = cluster.data_dir / "liars" / f"{number}-{attack}-{cell.role}-{cell.stage}"
    honest = [node_id for node_id, state in states(cluster).items() if state != "evicted"]
    liar = key_for(cell, honest, data_dir)
    command = ["tests.byzantine.lying_worker", attack, "--stage", str(cell.stage), "--role", cell.role]
    is_provable = ATTACKS[attack].is_convicted
    wrong, rounds = 0, 0
    failures: list[str] = []
    with joined_worker(cluster, command, data_dir, number=number) as process:
        wait_ready(cluster, liar, process, data_dir)
        while rounds < MAX_ROUNDS and not _is_done(cluster, liar, data_dir, is_provable=is_provable):
            rounds += 1
            for answer, expected in zip(ask_all(cluster), right, strict=True):
                if isinstance(answer, str):
                    failures.append(answer)
                else:
                    wrong += answer != expected
        seen = nodes(cluster)
    until(lambda: states(cluster).get(liar, "lost") in {"lost", "evicted"}, limit_s=GONE_WITHIN_S)
    lies = told(data_dir)
    return Outcome(
        attack=attack,
        cell=cell,
        lies=len(lies),
        windows=len({(lie["task_id"], lie["window"]) for lie in lies}),
        wrong=wrong,
        failures=tuple(failures),
        rounds=rounds,
        liar=liar,
        liar_state=str(seen.get(liar, {}).get("state", "gone")),
        reason=str(seen.get(liar, {}).get("reason") or ""),
        honest_evicted=sum(seen.get(node_id, {}).get("state") == "evicted" for node_id in honest),
        took_s=time.monotonic() - began_s,
    )


def told(data_dir: Path) -> list[dict[str, str | int]]:
    """The lies so far."""
    file = data_dir / LIES
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _is_done(cluster: Cluster, liar: str, data_dir: Path, *, is_provable: bool) -> bool:
    if not told(data_dir):
        return False
    if not is_provable:
        return True
    end_s = time.monotonic() + EVICTED_WITHIN_S
    while time.monotonic() < end_s:  # an answer may be complete before the liar's last word is judged
        if states(cluster).get(liar) == "evicted":
            return True
        time.sleep(0.1)
    return False
