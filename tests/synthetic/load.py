"""Clients of a world: they draw tasks, wait for their ends, and hold every token against the right one."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from shared.contracts.scheduler import SubmitTask, Submitted
from shared.domain.errors import ButterflyError
from shared.domain.ids import TaskId
from shared.domain.task import InferenceTask, SamplerParams, StopRules, TaskKind, TokenRecord, Verification
from shared.domain.task_state import TaskState
from shared.domain.window_entry import WindowEntry
from tests.fakes.engine import N_VOCAB
from tests.simulation.world.world import MODEL, MODEL_ID, World

END_IDS = (2,)
MAX_PROMPT = 6
MAX_TOKENS = (8, 48)
GREEDY_SHARE = 0.5
QUORUM_SHARE = 0.25
DEADLINE_S = 120.0
ENDED = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED})
TRY_AGAIN_S = 0.5


@dataclass
class Tally:
    windows: int = 0
    """Committed."""
    quorum_windows: int = 0
    """Of these, in tasks in mode `quorum`."""
    wrong_tokens: int = 0
    """Committed, and not what the model says; tasks that failed afterwards count as well."""
    right_tasks: int = 0
    """Finished with all their tokens, and these right."""
    wrong_tasks: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    """By reason."""
    retried_tasks: int = 0
    """Right tasks that took more than one epoch."""


def draw_task(rng: Random) -> InferenceTask:
    is_greedy = rng.random() < GREEDY_SHARE
    return InferenceTask(
        task_id=TaskId(f"task_{rng.getrandbits(128):032x}"),
        kind=TaskKind.COMPLETION,
        model_id=MODEL_ID,
        prompt_ids=tuple(rng.randrange(3, N_VOCAB) for _ in range(rng.randint(1, MAX_PROMPT))),
        max_tokens=rng.randint(*MAX_TOKENS),
        sampler=SamplerParams(temperature=0.0) if is_greedy else SamplerParams(seed=rng.getrandbits(32)),
        stop=StopRules(end_ids=END_IDS),
        verification=Verification.QUORUM if rng.random() < QUORUM_SHARE else Verification.AUDIT,
        max_byzantine=1,
        deadline_s=DEADLINE_S,
    )


def right_ids(task: InferenceTask) -> list[int]:
    """Computed whole, here."""
    return MODEL.generate(task.prompt_ids, task.max_tokens, sampler=task.sampler, end_ids=task.stop.end_ids)


def note_end(
    tally: Tally,
    task: InferenceTask,
    *,
    state: TaskState,
    reason: str,
    tokens: Iterable[TokenRecord],
    entries: Iterable[WindowEntry],
) -> None:
    """What became of a task. `reason`: why it failed, if it did."""
    ids, right = [record.token_id for record in tokens], right_ids(task)
    entries = tuple(entries)
    windows = len({entry.window for entry in entries})
    tally.windows += windows
    tally.quorum_windows += windows if task.verification is Verification.QUORUM else 0
    wrong = sum(given != expected for given, expected in zip(ids, right, strict=False)) + max(0, len(ids) - len(right))
    tally.wrong_tokens += wrong
    if state is not TaskState.COMPLETED:
        tally.failed[reason or state.value] += 1
    elif ids == right:
        tally.right_tasks += 1
        tally.retried_tasks += len({entry.epoch for entry in entries}) > 1
    else:
        tally.wrong_tasks += 1


class Clients:
    def __init__(self, world: World, rng: Random) -> None:
        self._rng = rng
        self._stores = world.stores
        self._scheduler = world.client("scheduler")
        self.tally = Tally()

    async def ask(self, count: int, is_enough: Callable[[], bool]) -> None:
        """So many at a time, one task after the other until it `is_enough`; returns when all have ended."""
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._ask_on(is_enough))

    async def _ask_on(self, is_enough: Callable[[], bool]) -> None:
        registry = self._stores.registry
        while not is_enough():
            task = draw_task(self._rng)
            await self._submit(task)
            await self._until_ended(task.task_id)
            record = await registry.record(task.task_id)
            note_end(
                self.tally,
                task,
                state=record.state,
                reason=f"{record.error_code}: {record.error}",
                tokens=await registry.tokens(task.task_id),
                entries=await self._stores.receipts.entries(task.task_id),
            )

    async def _submit(self, task: InferenceTask) -> None:
        """The scheduler may have no plan for a moment: after an eviction there may be too few nodes."""
        while True:
            try:
                await self._scheduler.post("/tasks", SubmitTask(task=task), Submitted, idempotent=False)
            except ButterflyError:
                await asyncio.sleep(TRY_AGAIN_S)
            else:
                return

    async def _until_ended(self, task_id: TaskId) -> None:
        after = "0"
        while True:
            found = await self._stores.registry.read_streams({task_id: after}, block_s=2.0)
            for entry in found.get(task_id, ()):
                after = entry.entry_id
                if entry.kind == "end":
                    return

    async def aclose(self) -> None:
        await self._scheduler.aclose()
