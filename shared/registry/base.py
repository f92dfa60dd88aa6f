"""The task registry as its users see it: the one store that several services share.

The task record is the truth; queue entries are hints that `reconcile` can rebuild. Every change is one atomic,
idempotent step that checks the state table (`shared.domain.task_state`) and its writer's fence, and writes the record,
the queue and the task's event stream together. Times are the store's own clock.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.domain.ids import Attempt, Epoch, ModelId, TaskId
from shared.domain.tail_state import TailState
from shared.domain.task import FinishReason, InferenceTask, TaskGroup, TokenRecord
from shared.domain.task_state import TaskEvent, TaskState

ATTACHMENT_TTL_S = 15.0
"""How long a task submitted as attached waits for the first `attach`, and how long one `attach` usually lasts."""


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """The mutable side of a task. Unix times in seconds, by the store's clock."""

    task: InferenceTask
    """`prompt_ids` is empty in pages of `list_tasks` and once the result has expired: see `num_prompt_tokens`."""
    state: TaskState
    attempt: Attempt
    epoch: Epoch
    created_s: float
    started_s: float | None
    finished_s: float | None
    deadline_s: float
    num_prompt_tokens: int
    num_committed: int
    """Generated tokens appended so far."""
    plan_id: str | None
    finish_reason: FinishReason | None
    error_code: str | None
    error: str
    expires_s: float | None
    """When tokens and events go; the bare record lives 7 days longer. None while the task runs."""
    tail_audit: TailState = TailState.NONE
    """What became of the fresh audit of its answer."""
    num_disputes: int = 0
    """Times that what its nodes signed did not go together."""

    @property
    def is_revoked(self) -> bool:
        """The answer was found wrong after it was released."""
        return self.tail_audit is TailState.FAILED and self.state is TaskState.COMPLETED

    @property
    def is_withheld(self) -> bool:
        """What is committed must not be shown: it waits for its tail audit, or did not come to pass it."""
        return self.task.hold and self.state is not TaskState.COMPLETED


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a submitted task."""

    task_id: TaskId
    state: TaskState
    created: bool
    """False: an idempotency key led to a task that was there already."""
    queue_size: int
    """Tasks waiting, in all groups."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A task taken from the queue, and the fence its taker writes with."""

    task_id: TaskId
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class HeldSessions:
    """What one renewal of a coordinator's sessions found."""

    lost: tuple[TaskId, ...]
    """Not its any more, or ended."""
    adopted: tuple[TaskId, ...]
    """Its from now on, each in a fresh epoch that nobody runs yet."""
    next_lapse_s: float | None
    """Until the first lease lapses that anybody holds; None: there is no session."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Tokens to append at `first_index` (0 = first generated token); those that are there already are ignored."""

    task_id: TaskId
    epoch: Epoch
    first_index: int
    records: tuple[TokenRecord, ...]


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """One entry of a task's event stream. `kind`: `state`, `commit`, `dispute`, `end`; `data` is JSON-like.

    state: {from, to, attempt, epoch}; commit: {first_index, records: tuple of `TokenRecord`}; dispute: {window, stage};
    end: {state, finish_reason, error_code, error, num_tokens}: always the last. States are their words, absent
    reasons and codes are None; `num_tokens` tells where the answer ends, should more have been committed.
    """

    entry_id: str
    kind: str
    data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Finish:
    """How a running answer ended well."""

    finish_reason: FinishReason
    num_tokens: int
    """Tokens of the answer, the end token and the one that completes a stop string included; the rest is cut off."""


@dataclass(frozen=True, slots=True)
class TaskPage:
    records: tuple[TaskRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class QueueView:
    depth: int
    oldest_age_s: float | None
    by_priority: Mapping[int, int]
    """Queued tasks per rank."""
    running: int
    """Unfinished tasks that are not queued."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What one pass of `reconcile` mended, as task ids; equal to another that mended the same."""

    requeued: tuple[TaskId, ...] = ()
    adopted: tuple[TaskId, ...] = ()
    expired: tuple[TaskId, ...] = ()
    detached: tuple[TaskId, ...] = ()
    exhausted: tuple[TaskId, ...] = ()
    next_lapse_s: float | None = field(default=None, compare=False)
    """Until the first lease of a scheduler lapses, as far as known now; None: nothing is leased."""


class TaskRegistry(ABC):
    """Methods raise `RegistryUnavailable` when the store is away, `TaskNotFound` for unknown ids; calls may overlap."""

    @abstractmethod
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
        """Store and queue a task. Durable when it returns.

        The queue is ordered by `rank` (0 to 100, higher first; None: the task's priority), then by arrival.
        `max_queue_size` bounds the queued tasks of all groups, `max_queued_per_owner` the owner's unfinished ones.
        An idempotency key (scoped to the owner, kept 24 h) seen before gives the earlier task; with another
        payload hash it raises `IdempotencyKeyReused`. Raises `QueueFull`, `QuotaExceeded`.
        """

    @abstractmethod
    async def groups(self) -> tuple[TaskGroup, ...]:
        """Those that have queued tasks, in order."""

    @abstractmethod
    async def claim(
        self, group: TaskGroup, count: int, *, owner: str, lease_s: float, plan_id: str | None = None
    ) -> tuple[Claim, ...]:
        """Take up to `count` (at most 32) tasks in queue order: Queued -> Partitioning, attempt + 1, leased to `owner`.

        With `plan_id`, the plan being known already, they go on to Coordinating in the same step. Tasks past their
        deadline are left to `reconcile`.
        """

    @abstractmethod
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
        """Apply one event of the state table.

        The writer gives its own fence: the scheduler `attempt`, the coordinator `epoch`.

        Raises `StaleAttempt`, `StaleEpoch`, `InvalidTransition`. Applying an event again that led to the present state
        with the same fence is a no-op. `Requeue` raises the epoch of a task that had a session: that one is fenced.
        Terminal events write the `end` entry, free the lease and start the result's time to live.
        """

    @abstractmethod
    async def open_session(
        self, task_id: TaskId, *, attempt: Attempt | None, plan_id: str, coordinator: str, lease_s: float
    ) -> tuple[Epoch, TaskRecord, tuple[TokenRecord, ...]]:
        """Take the next epoch for a task in Coordinating (with its `attempt`), or for a reassignment (`attempt` None).

        The session is `coordinator`'s then, for `lease_s`. A reassigned one must be its already, and goes back from
        Computing or Aggregating to Coordinating. Raises `StaleAttempt`, `StaleEpoch` (another coordinator's),
        `InvalidTransition`. Returns the new epoch, the record, and the tokens committed so far.
        """

    @abstractmethod
    async def hold_sessions(
        self, task_ids: Sequence[TaskId], *, coordinator: str, lease_s: float, adopt: int
    ) -> HeldSessions:
        """Extend the leases of a coordinator's sessions (0: give them up), and take over up to `adopt` that lapsed.

        Taking over raises the epoch: who held the session before cannot write any more.
        """

    @abstractmethod
    async def commit(self, commits: Sequence[Commit]) -> tuple[int | None, ...]:
        """Append drafted tokens of many tasks: for each the number committed now, or None when it is fenced. Streams
        tell them, but those of held tasks: these are told with the end.

        Fenced: its epoch is stale, its task unknown or not Computing. A gap (first_index beyond what is committed)
        changes nothing and gives the present number.
        """

    @abstractmethod
    async def finish(self, task_id: TaskId, *, epoch: Epoch, finish: Finish, last: Commit | None) -> bool:
        """Commit what is left and go Computing -> Aggregating -> Committing -> Completed in one step; a held task stays
        Aggregating until its tail audit is over.

        False: fenced (stale epoch, or not Computing). Raises `InvalidTransition` when fewer than `finish.num_tokens`
        tokens would then be committed.
        """

    @abstractmethod
    async def note_dispute(self, task_id: TaskId, *, epoch: Epoch, window: int, stage: int | None) -> None:
        """What was signed for a window does not go together, which ends the epoch: counted, and told on the stream.

        Counts once per epoch. Raises `StaleEpoch`.
        """

    @abstractmethod
    async def begin_tail_audit(self, task_id: TaskId, *, epoch: Epoch) -> Epoch:
        """Take the next epoch of a task at `epoch` that is completed, or held in Aggregating, to compute it once more:
        its tail audit is pending.

        Raises `StaleEpoch`, `InvalidTransition`. Sent again it is stale.
        """

    @abstractmethod
    async def note_tail_audit(
        self, task_id: TaskId, *, epoch: Epoch, state: TailState, error_code: str = "", error: str = ""
    ) -> None:
        """What became of the tail audit of a task that is completed or held. Pending is not noted where anything is
        noted already. Any other outcome ends a held task: passed completes it, and its stream tells all tokens; else it
        fails with `error_code` and `error`.

        Raises `StaleEpoch`, `InvalidTransition`. Sent again it is a no-op.
        """

    @abstractmethod
    async def cancel(self, task_id: TaskId) -> tuple[TaskState, bool]:
        """Cancel unless the task is terminal or committing: (state now, whether this call cancelled it).

        Raises the epoch, so that late workers are fenced at once.
        """

    @abstractmethod
    async def renew(self, task_ids: Sequence[TaskId], *, owner: str, lease_s: float) -> tuple[TaskId, ...]:
        """Extend leases (0: give them up); returns those that are not `owner`'s any more or have ended."""

    @abstractmethod
    async def attach(self, task_ids: Sequence[TaskId], *, ttl_s: float) -> None:
        """The clients of these tasks are still there. Ignores tasks not submitted as attached."""

    @abstractmethod
    async def reconcile(
        self, *, limit: int, max_attempts: int, owner: str, lease_s: float, waiting: Mapping[TaskGroup, str]
    ) -> Reconciled:
        """Mend up to `limit` tasks of each kind; harmless in parallel.

        Lease lapsed before it had a session: requeued, or failed with `attempts_exhausted` when that happened
        `max_attempts` times (giving a task back by `Requeue` is not counted). Lapsed later: adopted, that is leased to
        `owner` with attempt + 1 while its session goes on (a coordinator keeps that one, under a lease of its own).
        Queued but in no queue: added again. Past the deadline: failed with
        `deadline_exceeded`, and with the reason `waiting` gives for its group if it still was queued. Client gone:
        cancelled.
        """

    @abstractmethod
    async def wait_for_work(self, timeout_s: float) -> bool:
        """Block until something was queued or a running task ended, or the time is over."""

    @abstractmethod
    async def record(self, task_id: TaskId) -> TaskRecord:
        """The task as it is now."""

    @abstractmethod
    async def tokens(self, task_id: TaskId) -> tuple[TokenRecord, ...]:
        """Committed tokens. Raises `ResultExpired` after the time to live."""

    @abstractmethod
    async def read_streams(
        self, after: Mapping[TaskId, str], *, block_s: float
    ) -> Mapping[TaskId, tuple[StreamEntry, ...]]:
        """New entries of many tasks' streams at once; `after` maps each to the last entry id seen.

        "0", or whatever is no entry id, is the start. `block_s` 0 does not wait. Bounded: read on from the last id.
        """

    @abstractmethod
    async def list_tasks(
        self,
        *,
        owner: str | None,
        states: frozenset[TaskState],
        model_id: ModelId | None,
        limit: int,
        cursor: str | None,
    ) -> TaskPage:
        """Newest first. A page may be short of `limit`; the last one has no cursor. Raises `InvalidCursor`."""

    @abstractmethod
    async def queue(self) -> QueueView:
        """Depth and age (since submission) over all groups."""

    @abstractmethod
    async def ping(self) -> None:
        """Raise `RegistryUnavailable` unless the store answers with the durability it must have."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of the store; nothing is called any more."""
