"""The task registry in memory: passes the same contract suite as the Redis one."""

import asyncio
import base64
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from shared.domain.errors import (
    IdempotencyKeyReused,
    InvalidCursor,
    InvalidTransition,
    QueueFull,
    QuotaExceeded,
    ResultExpired,
    StaleAttempt,
    StaleEpoch,
    TaskNotFound,
)
from shared.domain.ids import Attempt, Epoch, ModelId, TaskId
from shared.domain.tail_state import TailState
from shared.domain.task import InferenceTask, TaskGroup, TokenRecord
from shared.domain.task_state import CANCELLABLE, TERMINAL, TRANSITIONS, TaskEvent, TaskState, next_state
from shared.registry.base import (
    ATTACHMENT_TTL_S,
    Claim,
    Commit,
    Finish,
    HeldSessions,
    QueueView,
    Reconciled,
    StreamEntry,
    Submission,
    TaskPage,
    TaskRecord,
    TaskRegistry,
)

RECORD_OUTLIVES_RESULT_S = 7 * 86_400


@dataclass(slots=True)
class _Entry:
    record: TaskRecord
    rank: int
    sequence: int
    tokens: list[TokenRecord] = field(default_factory=list)
    stream: list[StreamEntry] = field(default_factory=list)
    last: object = None
    """The step that led to the present state: the same step again is a no-op."""
    lease_owner: str = ""
    lease_until: float = 0.0
    attached_until: float | None = None
    lapses: int = 0
    disputed_epoch: int = 0
    coordinator: str = ""
    held_until: float | None = None

    @property
    def order(self) -> tuple[int, int]:
        return -self.rank, self.sequence

    @property
    def unfinished(self) -> bool:
        return self.record.state not in TERMINAL


class MemoryTaskRegistry(TaskRegistry):
    """`now` gives Unix seconds. One event loop only; nothing here awaits between looking and writing."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._entries: dict[TaskId, _Entry] = {}
        self._idempotency: dict[tuple[str, str], tuple[TaskId, str]] = {}
        self._sequence = 0
        self._entry_number = 0
        self._wake = asyncio.Event()
        self._changed = asyncio.Condition()

    async def submit(
        self,
        task: InferenceTask,
        *,
        idempotency_key: str | None,
        payload_hash: str,
        attached: bool,
        max_queue_size: int,
        max_queued_per_owner: int,
        rank: int | None = None,
    ) -> Submission:
        if task.task_id in self._entries:
            return self._submission(task.task_id, created=True)
        if idempotency_key:
            earlier = self._idempotency.get((task.owner, idempotency_key))
            if earlier is not None:
                if earlier[1] != payload_hash:
                    raise IdempotencyKeyReused("this idempotency key came with another request before")
                return self._submission(earlier[0], created=False)
        unfinished = [entry for entry in self._entries.values() if entry.unfinished]
        if sum(entry.record.state is TaskState.QUEUED for entry in unfinished) >= max_queue_size:
            raise QueueFull(f"{max_queue_size} tasks are waiting already", retry_after_s=1.0)
        if sum(entry.record.task.owner == task.owner for entry in unfinished) >= max_queued_per_owner:
            raise QuotaExceeded(f"{max_queued_per_owner} tasks of this key are unfinished", retry_after_s=1.0)
        self._sequence += 1
        entry = _Entry(self._fresh_record(task), task.priority if rank is None else rank, self._sequence)
        if attached:
            entry.attached_until = self._now() + ATTACHMENT_TTL_S
        if idempotency_key:
            self._idempotency[task.owner, idempotency_key] = (task.task_id, payload_hash)
        self._entries[task.task_id] = entry
        self._tell_state(entry, TaskState.SUBMITTED)
        self._wake.set()
        await self._announce()
        return self._submission(task.task_id, created=True)

    async def groups(self) -> tuple[TaskGroup, ...]:
        return tuple(sorted({entry.record.task.group for entry in self._queued()}))

    async def claim(
        self, group: TaskGroup, count: int, *, owner: str, lease_s: float, plan_id: str | None = None
    ) -> tuple[Claim, ...]:
        now = self._now()
        waiting = [entry for entry in self._queued() if entry.record.task.group == group]
        claims = []
        for entry in [entry for entry in waiting if entry.record.deadline_s > now][: min(count, 32)]:
            attempt = Attempt(entry.record.attempt + 1)
            entry.record = replace(entry.record, attempt=attempt, plan_id=plan_id)
            entry.lease_owner, entry.lease_until = owner, now + lease_s
            self._move(entry, TaskEvent.START_PARTITIONING)
            if plan_id is not None:
                self._move(entry, TaskEvent.PARTITION_COMPLETE)
            entry.last = None
            claims.append(Claim(entry.record.task.task_id, attempt))
        await self._announce()
        return tuple(claims)

    async def advance(
        self,
        task_id: TaskId,
        event: TaskEvent,
        *,
        attempt: Attempt | None = None,
        epoch: Epoch | None = None,
        plan_id: str | None = None,
        error_code: str = "",
        error: str = "",
    ) -> TaskState:
        entry = self._entry(task_id)
        step = (event, attempt, epoch)
        if entry.last == step:
            return entry.record.state
        if attempt is not None and attempt != entry.record.attempt:
            raise StaleAttempt(f"task {task_id} is at attempt {entry.record.attempt} by now")
        if epoch is not None and epoch != entry.record.epoch:
            raise StaleEpoch(f"task {task_id} is at epoch {entry.record.epoch} by now")
        to = next_state(entry.record.state, event)
        if to in TERMINAL:
            self._end(entry, to, error_code=error_code, error=error)
        elif event is TaskEvent.REQUEUE:
            self._requeue(entry)
        else:
            if plan_id is not None:
                entry.record = replace(entry.record, plan_id=plan_id)
            self._move(entry, event)
        entry.last = step
        await self._announce()
        return to

    async def open_session(
        self, task_id: TaskId, *, attempt: Attempt | None, plan_id: str, coordinator: str, lease_s: float
    ) -> tuple[Epoch, TaskRecord, tuple[TokenRecord, ...]]:
        entry = self._entry(task_id)
        if attempt is not None and attempt != entry.record.attempt:
            raise StaleAttempt(f"task {task_id} is at attempt {entry.record.attempt} by now")
        reassigned = attempt is None and (entry.record.state, TaskEvent.REASSIGN) in TRANSITIONS
        if entry.record.state is not TaskState.COORDINATING and not reassigned:
            raise InvalidTransition(f"a {entry.record.state} task cannot take a session")
        if attempt is None and entry.coordinator != coordinator:
            raise StaleEpoch(f"task {task_id} is at epoch {entry.record.epoch} by now")
        epoch = Epoch(entry.record.epoch + 1)
        entry.record = replace(entry.record, epoch=epoch, plan_id=plan_id)
        if reassigned:
            self._move(entry, TaskEvent.REASSIGN)
        entry.last = None
        entry.coordinator, entry.held_until = coordinator, self._now() + lease_s
        await self._announce()
        return epoch, entry.record, tuple(entry.tokens)

    async def hold_sessions(
        self, task_ids: Sequence[TaskId], *, coordinator: str, lease_s: float, adopt: int
    ) -> HeldSessions:
        now, lost, adopted = self._now(), [], []
        for task_id in task_ids:
            entry = self._entries.get(task_id)
            if entry is not None and entry.coordinator == coordinator and entry.held_until is not None:
                entry.held_until = now + lease_s
            else:
                lost.append(task_id)
        held = sorted(
            ((entry.held_until, task_id) for task_id, entry in self._entries.items() if entry.held_until is not None)
        )
        for _, task_id in [each for each in held if each[0] <= now][:adopt]:
            entry = self._entries[task_id]
            entry.record = replace(entry.record, epoch=Epoch(entry.record.epoch + 1))
            entry.coordinator, entry.held_until, entry.last = coordinator, now + lease_s, None
            adopted.append(task_id)
        ends = [entry.held_until for entry in self._entries.values() if entry.held_until is not None]
        return HeldSessions(tuple(lost), tuple(adopted), max(min(ends) - now, 0.0) if ends else None)

    async def commit(self, commits: Sequence[Commit]) -> tuple[int | None, ...]:
        counts: list[int | None] = []
        for commit in commits:
            entry = self._entries.get(commit.task_id)
            if entry is None or self._fenced(entry, commit.epoch):
                counts.append(None)
                continue
            self._append(entry, commit, limit=None)
            counts.append(entry.record.num_committed)
        await self._announce()
        return tuple(counts)

    async def finish(self, task_id: TaskId, *, epoch: Epoch, finish: Finish, last: Commit | None) -> bool:
        entry = self._entry(task_id)
        step = ("finish", epoch)
        if entry.last == step:
            return True
        if self._fenced(entry, epoch):
            return False
        reached = len(entry.tokens)
        if last is not None and last.first_index <= reached:
            reached = max(reached, last.first_index + len(last.records))
        if reached < finish.num_tokens:
            raise InvalidTransition(f"the answer has {finish.num_tokens} tokens, only {reached} are there")
        if last is not None:
            self._append(entry, last, limit=finish.num_tokens)
        del entry.tokens[finish.num_tokens :]
        entry.record = replace(entry.record, num_committed=len(entry.tokens), finish_reason=finish.finish_reason)
        if entry.record.task.hold:
            self._move(entry, TaskEvent.COMPUTATION_COMPLETE)
        else:
            self._end(entry, TaskState.COMPLETED)
        entry.last = step
        await self._announce()
        return True

    async def note_dispute(self, task_id: TaskId, *, epoch: Epoch, window: int, stage: int | None) -> None:
        entry = self._entry(task_id)
        if entry.record.epoch != epoch:
            raise StaleEpoch(f"task {task_id} is at epoch {entry.record.epoch} by now")
        if entry.disputed_epoch != epoch:
            entry.disputed_epoch = epoch
            entry.record = replace(entry.record, num_disputes=entry.record.num_disputes + 1)
            self._tell(entry, "dispute", {"window": window, "stage": stage})
        await self._announce()

    async def begin_tail_audit(self, task_id: TaskId, *, epoch: Epoch) -> Epoch:
        record = self._audited(task_id, epoch)
        self._entries[task_id].record = replace(record, epoch=Epoch(epoch + 1), tail_audit=TailState.PENDING)
        return Epoch(epoch + 1)

    async def note_tail_audit(
        self, task_id: TaskId, *, epoch: Epoch, state: TailState, error_code: str = "", error: str = ""
    ) -> None:
        entry, step = self._entry(task_id), ("tail", epoch, state)
        if entry.last == step:
            return
        record = self._audited(task_id, epoch)
        if state is not TailState.PENDING or record.tail_audit is TailState.NONE:
            entry.record = replace(record, tail_audit=state)
        if record.state is TaskState.COMPLETED or state is TailState.PENDING:
            return
        if state is TailState.PASSED:
            self._tell_tokens(entry, 0)
            self._end(entry, TaskState.COMPLETED)
        else:
            entry.record = replace(entry.record, finish_reason=None)
            self._end(entry, TaskState.FAILED, error_code=error_code, error=error)
        entry.last = step
        await self._announce()

    def _audited(self, task_id: TaskId, epoch: Epoch) -> TaskRecord:
        record = self._entry(task_id).record
        is_held = record.task.hold and record.state is TaskState.AGGREGATING
        if record.state is not TaskState.COMPLETED and not is_held:
            raise InvalidTransition(f"a {record.state} task cannot take a tail audit")
        if record.epoch != epoch:
            raise StaleEpoch(f"task {task_id} is at epoch {record.epoch} by now")
        return record

    async def cancel(self, task_id: TaskId) -> tuple[TaskState, bool]:
        entry = self._entry(task_id)
        if entry.record.state not in CANCELLABLE:
            return entry.record.state, False
        self._end(entry, TaskState.CANCELLED, fence=True)
        await self._announce()
        return TaskState.CANCELLED, True

    async def renew(self, task_ids: Sequence[TaskId], *, owner: str, lease_s: float) -> tuple[TaskId, ...]:
        lost = []
        for task_id in task_ids:
            entry = self._entries.get(task_id)
            if entry is None or entry.lease_owner != owner:
                lost.append(task_id)
            else:
                entry.lease_until = self._now() + lease_s
        return tuple(lost)

    async def attach(self, task_ids: Sequence[TaskId], *, ttl_s: float) -> None:
        for task_id in task_ids:
            entry = self._entries.get(task_id)
            if entry is not None and entry.attached_until is not None:
                entry.attached_until = self._now() + ttl_s

    async def reconcile(
        self, *, limit: int, max_attempts: int, owner: str, lease_s: float, waiting: Mapping[TaskGroup, str]
    ) -> Reconciled:
        now = self._now()
        requeued, adopted, expired, detached, exhausted = [], [], [], [], []
        for task_id, entry in [item for item in self._entries.items() if item[1].unfinished]:
            state = entry.record.state
            if entry.record.deadline_s <= now:
                reason = waiting.get(entry.record.task.group) if state is TaskState.QUEUED else None
                message = f"the deadline passed while the task was {state}" + (f": {reason}" if reason else "")
                self._end(entry, TaskState.FAILED, error_code="deadline_exceeded", error=message, fence=True)
                expired.append(task_id)
            elif entry.attached_until is not None and entry.attached_until <= now and state in CANCELLABLE:
                self._end(entry, TaskState.CANCELLED, fence=True)
                detached.append(task_id)
            elif state is TaskState.QUEUED or entry.lease_until > now:
                continue
            elif (state, TaskEvent.REQUEUE) not in TRANSITIONS or entry.coordinator:
                entry.record = replace(entry.record, attempt=Attempt(entry.record.attempt + 1))
                entry.lease_owner, entry.lease_until = owner, now + lease_s
                adopted.append(task_id)
            else:
                entry.lapses += 1
                if entry.lapses < max_attempts:
                    self._requeue(entry)
                    requeued.append(task_id)
                    self._wake.set()
                else:
                    message = f"a scheduler was lost {entry.lapses} times while starting the task"
                    self._end(entry, TaskState.FAILED, error_code="attempts_exhausted", error=message, fence=True)
                    exhausted.append(task_id)
        await self._announce()
        leases = [
            entry.lease_until
            for entry in self._entries.values()
            if entry.unfinished and entry.record.state is not TaskState.QUEUED
        ]
        return Reconciled(
            tuple(requeued),
            tuple(adopted),
            tuple(expired),
            tuple(detached),
            tuple(exhausted),
            next_lapse_s=max(min(leases) - now, 0.0) if leases else None,
        )

    async def wait_for_work(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def record(self, task_id: TaskId) -> TaskRecord:
        entry = self._entry(task_id)
        if self._result_gone(entry):
            return replace(entry.record, task=replace(entry.record.task, prompt_ids=()))
        return entry.record

    async def tokens(self, task_id: TaskId) -> tuple[TokenRecord, ...]:
        entry = self._entry(task_id)
        if self._result_gone(entry):
            raise ResultExpired(f"the result of task {task_id} was kept until its time to live was over")
        return tuple(entry.tokens)

    async def read_streams(
        self, after: Mapping[TaskId, str], *, block_s: float
    ) -> Mapping[TaskId, tuple[StreamEntry, ...]]:
        if not after:
            return {}
        async with self._changed:
            try:
                async with asyncio.timeout(block_s):
                    await self._changed.wait_for(lambda: bool(self._entries_after(after)))
            except TimeoutError:
                pass
            return self._entries_after(after)

    async def list_tasks(
        self,
        *,
        owner: str | None,
        states: frozenset[TaskState],
        model_id: ModelId | None,
        limit: int,
        cursor: str | None,
    ) -> TaskPage:
        before = None if cursor is None else _from_cursor(cursor)
        found = [
            replace(entry.record, task=replace(entry.record.task, prompt_ids=()))
            for task_id, entry in sorted(self._entries.items(), reverse=True)
            if (before is None or task_id < before)
            and owner in {None, entry.record.task.owner}
            and (not states or entry.record.state in states)
            and model_id in {None, entry.record.task.model_id}
        ]
        page = tuple(found[:limit])
        return TaskPage(page, _to_cursor(page[-1].task.task_id) if len(found) > limit else None)

    async def queue(self) -> QueueView:
        queued = self._queued()
        by_rank: dict[int, int] = defaultdict(int)
        for entry in queued:
            by_rank[entry.rank] += 1
        oldest = min((entry.record.created_s for entry in queued), default=None)
        return QueueView(
            depth=len(queued),
            oldest_age_s=None if oldest is None else self._now() - oldest,
            by_priority=dict(by_rank),
            running=sum(entry.unfinished for entry in self._entries.values()) - len(queued),
        )

    async def ping(self) -> None:
        return

    async def aclose(self) -> None:
        return

    def _submission(self, task_id: TaskId, *, created: bool) -> Submission:
        return Submission(task_id, self._entries[task_id].record.state, created, len(self._queued()))

    def _fresh_record(self, task: InferenceTask) -> TaskRecord:
        now = self._now()
        return TaskRecord(
            task=task,
            state=TaskState.QUEUED,
            attempt=Attempt(0),
            epoch=Epoch(0),
            created_s=now,
            started_s=None,
            finished_s=None,
            deadline_s=now + task.deadline_s,
            num_prompt_tokens=len(task.prompt_ids),
            num_committed=0,
            plan_id=None,
            finish_reason=None,
            error_code=None,
            error="",
            expires_s=None,
        )

    def _entry(self, task_id: TaskId) -> _Entry:
        entry = self._entries.get(task_id)
        expires_s = None if entry is None else entry.record.expires_s
        if entry is None or (expires_s is not None and expires_s + RECORD_OUTLIVES_RESULT_S <= self._now()):
            raise TaskNotFound(f"there is no task {task_id}")
        return entry

    def _queued(self) -> list[_Entry]:
        queued = [entry for entry in self._entries.values() if entry.record.state is TaskState.QUEUED]
        return sorted(queued, key=lambda entry: entry.order)

    def _fenced(self, entry: _Entry, epoch: Epoch) -> bool:
        return entry.record.epoch != epoch or entry.record.state is not TaskState.COMPUTING

    def _result_gone(self, entry: _Entry) -> bool:
        return entry.record.expires_s is not None and entry.record.expires_s <= self._now()

    def _move(self, entry: _Entry, event: TaskEvent) -> None:
        before = entry.record
        entry.record = replace(before, state=next_state(before.state, event))
        if entry.record.state is TaskState.COMPUTING and before.started_s is None:
            entry.record = replace(entry.record, started_s=self._now())
        self._tell_state(entry, before.state)

    def _requeue(self, entry: _Entry) -> None:
        session_given_up = entry.record.epoch > 0
        entry.record = replace(entry.record, epoch=Epoch(entry.record.epoch + session_given_up), plan_id=None)
        entry.lease_owner, entry.coordinator, entry.held_until = "", "", None
        self._move(entry, TaskEvent.REQUEUE)
        entry.last = None

    def _end(self, entry: _Entry, to: TaskState, *, error_code: str = "", error: str = "", fence: bool = False) -> None:
        now = self._now()
        entry.record = replace(
            entry.record,
            state=to,
            epoch=Epoch(entry.record.epoch + fence),
            finished_s=now,
            expires_s=now + entry.record.task.result_ttl_s,
            error_code=error_code or None,
            error=error,
        )
        entry.lease_owner, entry.attached_until, entry.last, entry.held_until = "", None, None, None
        self._tell(
            entry,
            "end",
            {
                "state": to,
                "finish_reason": entry.record.finish_reason,
                "error_code": entry.record.error_code,
                "error": error,
                "num_tokens": entry.record.num_committed,
            },
        )
        self._wake.set()

    def _append(self, entry: _Entry, commit: Commit, *, limit: int | None) -> None:
        have = len(entry.tokens)
        if commit.first_index > have:
            return
        fresh = commit.records[have - commit.first_index :]
        fresh = fresh if limit is None else fresh[: max(limit - have, 0)]
        if fresh:
            entry.tokens += fresh
            entry.record = replace(entry.record, num_committed=len(entry.tokens))
            if not entry.record.task.hold:
                self._tell_tokens(entry, have)

    def _tell_tokens(self, entry: _Entry, first_index: int) -> None:
        self._tell(entry, "commit", {"first_index": first_index, "records": tuple(entry.tokens[first_index:])})

    def _tell_state(self, entry: _Entry, before: TaskState) -> None:
        record = entry.record
        fences = {"attempt": record.attempt, "epoch": record.epoch}
        self._tell(entry, "state", {"from": before, "to": record.state, **fences})

    def _tell(self, entry: _Entry, kind: str, data: Mapping[str, object]) -> None:
        self._entry_number += 1
        entry.stream.append(StreamEntry(f"{self._entry_number}-0", kind, data))

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _entries_after(self, after: Mapping[TaskId, str]) -> dict[TaskId, tuple[StreamEntry, ...]]:
        found = {}
        for task_id, seen in after.items():
            entry = self._entries.get(task_id)
            if entry is None or self._result_gone(entry):
                continue
            new = tuple(each for each in entry.stream if _number(each.entry_id) > _number(seen))
            if new:
                found[task_id] = new
        return found


def _number(entry_id: str) -> int:
    first = entry_id.partition("-")[0]
    return int(first) if first.isdigit() else 0


def _to_cursor(task_id: TaskId) -> str:
    return base64.urlsafe_b64encode(f"1:{task_id}".encode()).decode()


def _from_cursor(cursor: str) -> str:
    try:
        version, _, task_id = base64.urlsafe_b64decode(cursor).decode().partition(":")
    except ValueError:
        version, task_id = "", ""
    if version != "1":
        raise InvalidCursor("the cursor is not one that a list of tasks gave", param="after")
    return task_id
