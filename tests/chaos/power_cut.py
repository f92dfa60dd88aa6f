"""Pulls the plug on the registry's server under load, again and again, and counts what was acknowledged and is gone.

    python -m tests.chaos.power_cut --cuts 100 --policy always

SIGKILL alone proves nothing about durability: the kernel survives and keeps what was written. So after each kill every
file of the append-only log is cut back to what the last successful fsync covered (`fsync_trace`), which is all that a
power cut leaves for certain.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from shared.domain.errors import RegistryUnavailable, TaskNotFound
from shared.domain.ids import TaskId
from shared.domain.task import FinishReason
from shared.domain.task_state import TaskEvent, TaskState
from shared.registry.base import Claim, Commit, Finish
from shared.registry.redis_registry import RedisTaskRegistry, connect_registry
from tests.chaos.cut_server import CutServer
from tests.chaos.fsync_trace import why_not
from tests.fakes.tasks import GROUP, make_task, make_tokens

SUBMITTERS, COMMITTERS = 4, 4
TOKENS_PER_TASK = 8
SHORTEST_LOAD_S, LONGEST_LOAD_S = 0.1, 0.5
LEASE_S = 3_600.0  # nothing is reconciled here: what was claimed stays claimed


@dataclass
class Ledger:
    """What the registry has acknowledged."""

    submitted: set[TaskId] = field(default_factory=set)
    tokens: dict[TaskId, int] = field(default_factory=dict)
    finished: set[TaskId] = field(default_factory=set)


@dataclass
class Report:
    policy: str
    cuts: int = 0
    bytes_cut: int = 0
    submissions: int = 0
    commits: int = 0
    finishes: int = 0
    lost: list[str] = field(default_factory=list)
    """One line per acknowledged change that is gone, or that came back as another one."""

    def __str__(self) -> str:
        return (
            f"{self.policy}: {self.cuts} cuts took {self.bytes_cut} bytes that no fsync had covered; of"
            f" {self.submissions} submissions, {self.commits} commits and {self.finishes} ends that were acknowledged,"
            f" {len(self.lost)} were lost"
        )


class Load:
    """Submits tasks and commits their tokens, until the server is gone."""

    def __init__(self, registry: RedisTaskRegistry, ledger: Ledger, report: Report) -> None:
        self._registry = registry
        self._ledger = ledger
        self._report = report

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(SUBMITTERS):
                group.create_task(self._submit())
            for number in range(COMMITTERS):
                group.create_task(self._commit(f"replica-{number}"))

    async def _submit(self) -> None:
        try:
            while True:
                task = make_task()
                await self._registry.submit(
                    task,
                    idempotency_key=None,
                    payload_hash="",
                    attached=False,
                    max_queue_size=1_000_000,
                    max_queued_per_owner=1_000_000,
                )
                self._ledger.submitted.add(task.task_id)
                self._report.submissions += 1
        except RegistryUnavailable:
            pass

    async def _commit(self, owner: str) -> None:
        try:
            while True:
                for claim in await self._registry.claim(GROUP, 1, owner=owner, lease_s=LEASE_S, plan_id="plan-1"):
                    await self._answer(claim)
        except RegistryUnavailable:
            pass

    async def _answer(self, claim: Claim) -> None:
        registry, ledger, task_id = self._registry, self._ledger, claim.task_id
        epoch, _, _ = await registry.open_session(
            task_id, attempt=claim.attempt, plan_id="plan-1", coordinator="coordinator-1", lease_s=60.0
        )
        await registry.advance(task_id, TaskEvent.COORDINATION_COMPLETE, epoch=epoch)
        for index in range(TOKENS_PER_TASK):
            (count,) = await registry.commit([Commit(task_id, epoch, index, make_tokens(index))])
            assert count == index + 1
            ledger.tokens[task_id] = count
            self._report.commits += 1
        finish = Finish(FinishReason.STOP, TOKENS_PER_TASK)
        assert await registry.finish(task_id, epoch=epoch, finish=finish, last=None)
        ledger.finished.add(task_id)
        self._report.finishes += 1


async def lost_of(registry: RedisTaskRegistry, ledger: Ledger) -> list[str]:
    """What of the ledger the registry does not say any more."""
    lost = []
    for task_id in sorted(ledger.submitted | set(ledger.tokens)):
        try:
            state, tokens = (await registry.record(task_id)).state, await registry.tokens(task_id)
        except TaskNotFound:
            lost.append(f"submission of {task_id}")
            state, tokens = None, ()
        if tokens != make_tokens(*range(len(tokens))):
            lost.append(f"{task_id} came back with other tokens than were committed")
        acknowledged = ledger.tokens.get(task_id, 0)
        lost += [f"token {index} of {task_id}" for index in range(len(tokens), acknowledged)]
        if task_id in ledger.finished and state is not TaskState.COMPLETED:
            lost.append(f"end of {task_id}: it is {state} now")
    return lost


@asynccontextmanager
async def connected(server: CutServer) -> AsyncIterator[RedisTaskRegistry]:
    registry = connect_registry(server.url, allow_weak_durability=True)
    try:
        yield registry
    finally:
        await registry.aclose()


async def cut_power(folder: Path, *, cuts: int, policy: str, seed: int) -> Report:
    """`cuts` rounds on one growing log: load, power cut, restart, check."""
    rng, report, server = random.Random(seed), Report(policy), CutServer(folder, policy)
    server.start()
    try:
        for _ in range(cuts):
            ledger = Ledger()
            async with connected(server) as registry, asyncio.TaskGroup() as group:
                group.create_task(Load(registry, ledger, report).run())
                await asyncio.sleep(rng.uniform(SHORTEST_LOAD_S, LONGEST_LOAD_S))
                server.kill()
            report.bytes_cut += server.cut_back()
            report.cuts += 1
            server.start()
            async with connected(server) as registry:
                report.lost += await lost_of(registry, ledger)
    finally:
        server.end()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Power cuts of the registry's server.")
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--policy", choices=("always", "everysec"), default="always")
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    reason = why_not()
    if reason is not None:
        sys.exit(reason)
    with tempfile.TemporaryDirectory(prefix="butterfly-power-cut-") as folder:
        report = asyncio.run(cut_power(Path(folder), cuts=wanted.cuts, policy=wanted.policy, seed=wanted.seed))
    print(report)
    if wanted.policy == "always" and report.lost:
        sys.exit("\n".join(f"  lost: {line}" for line in report.lost))
    if wanted.policy != "always" and not report.lost:
        sys.exit("nothing was lost although most was not synced: this test sees nothing")


if __name__ == "__main__":
    main()
