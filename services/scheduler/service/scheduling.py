"""Takes tasks in and lets them go again."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from services.scheduler.domain.dispatch import QueueRules
from services.scheduler.ports import Coordinator, Partitioner
from shared.contracts.scheduler import CancelReply, QueueState, SubmitTask, Submitted
from shared.domain.errors import ButterflyError, ModelNotFound, NoCapacity, PeerUnavailable, VerificationUnavailable
from shared.domain.ids import ModelId, NodeId, TaskId
from shared.domain.plan import NodeCapability, Seating
from shared.domain.task import TaskGroup, Verification
from shared.events.catalogue import TaskCancelled, TaskEnqueued, TaskSubmitted
from shared.events.publisher import Publisher
from shared.registry.base import ATTACHMENT_TTL_S, TaskRecord, TaskRegistry
from shared.runtime.clock import Clock

K = TypeVar("K")

log = logging.getLogger(__name__)

VERIFIABLE_KEPT_S = 1.0  # how long a look at the nodes counts for further tasks
PRESENT_S = 5.0  # how long a node that is not ready any more may be on its way back: a coordinator starts anew
JOINING_S = 20.0  # how long more nodes are expected, after the start of this scheduler or since one was last seen
AWAY_S = 30.0  # how long what was possible counts while the peers that know are away: they may be starting anew
MODELS_KEPT_S = 10.0  # how long the list of models is trusted to contain what it contained


class SchedulingInterface(ABC):
    """Every call may raise `RegistryUnavailable`; calls may overlap and may arrive twice."""

    @abstractmethod
    async def submit_task(self, wanted: SubmitTask) -> Submitted:
        """Queue a task; durable when it returns.

        Raises `ModelNotFound`, `VerificationUnavailable` (less than was asked for is never given), `QueueFull`,
        `QuotaExceeded`, `IdempotencyKeyReused`, `PeerUnavailable`, and with `require_capacity` `NoCapacity`.
        """

    @abstractmethod
    async def cancel_task(self, task_id: TaskId) -> CancelReply:
        """Stop a task that has not ended, down to the workers. Raises `TaskNotFound`."""

    @abstractmethod
    async def renew_attachments(self, task_ids: Sequence[TaskId]) -> None:
        """The clients of these tasks still wait; without this an attached task is cancelled."""

    @abstractmethod
    async def queue_state(self) -> QueueState:
        """What waits and what runs."""


class SchedulingService(SchedulingInterface):
    def __init__(
        self,
        *,
        registry: TaskRegistry,
        partitioner: Partitioner,
        coordinator: Coordinator,
        events: Publisher,
        clock: Clock,
        rules: QueueRules,
    ) -> None:
        self._registry = registry
        self._partitioner = partitioner
        self._coordinator = coordinator
        self._events = events
        self._clock = clock
        self._rules = rules
        self._models: frozenset[ModelId] = frozenset()
        self._models_until_s = 0.0
        self._started_until_s = clock.now_s() + JOINING_S
        self._verifiable = _Lately[tuple[TaskGroup, bool]]()
        """By group, and whether answers are held back."""
        self._had_capacity = _Lately[TaskGroup]()
        self._seen: dict[NodeId, tuple[NodeCapability, float]] = {}

    async def submit_task(self, wanted: SubmitTask) -> Submitted:
        task = wanted.task
        await self._check_model(task.model_id)
        if task.verification is not Verification.NONE:
            await self._check_verifiable(task.group, hold=task.hold)
        if wanted.require_capacity:
            await self._check_capacity(task.group)
        submission = await self._registry.submit(
            task,
            idempotency_key=wanted.idempotency_key,
            payload_hash=wanted.payload_hash,
            attached=wanted.attached,
            max_queue_size=self._rules.max_queue_size,
            max_queued_per_owner=self._rules.max_queued_per_owner,
            rank=self._rules.rank(task),
        )
        if submission.created:
            self._events.publish(TaskSubmitted(task_id=task.task_id, priority=task.priority))
            self._events.publish(TaskEnqueued(task_id=task.task_id, queue_size=submission.queue_size))
        return Submitted(task_id=submission.task_id, state=submission.state, created=submission.created)

    async def cancel_task(self, task_id: TaskId) -> CancelReply:
        state, accepted = await self._registry.cancel(task_id)
        if accepted:
            record = await self._registry.record(task_id)
            self._events.publish(TaskCancelled(task_id=task_id, latency_ms=latency_ms(record)))
            await stop_session(self._coordinator, task_id)
        return CancelReply(task_id=task_id, state=state, accepted=accepted)

    async def renew_attachments(self, task_ids: Sequence[TaskId]) -> None:
        await self._registry.attach(task_ids, ttl_s=ATTACHMENT_TTL_S)

    async def queue_state(self) -> QueueState:
        view = await self._registry.queue()
        return QueueState(
            depth=view.depth,
            oldest_age_s=view.oldest_age_s,
            by_priority=dict(view.by_priority),
            running=view.running,
        )

    async def _check_model(self, model_id: ModelId) -> None:
        now_s = self._clock.now_s()
        if model_id not in self._models or now_s >= self._models_until_s:
            try:
                self._models = await self._partitioner.model_ids()
                self._models_until_s = now_s + MODELS_KEPT_S
            except PeerUnavailable:
                if model_id not in self._models:
                    raise
        if model_id not in self._models:
            raise ModelNotFound(f"there is no model {model_id}")

    async def _check_verifiable(self, group: TaskGroup, *, hold: bool) -> None:
        """Refuse what the nodes cannot give even when they are idle: such a task would wait for its deadline.

        Raises `VerificationUnavailable`, or `NoCapacity`, which says to ask again, while nodes may be on their way.
        """
        now_s = self._clock.now_s()
        if self._verifiable.within(VERIFIABLE_KEPT_S, (group, hold), now_s=now_s):
            return
        try:
            present = await self._present_nodes(now_s)
            await self._partitioner.plan(group.model_id, present, replace(_seating(group), hold=hold))
        except (NoCapacity, VerificationUnavailable) as error:
            self._verifiable.forget((group, hold))
            may_join = now_s < self._started_until_s or any(seen_s < now_s for _, seen_s in self._seen.values())
            if may_join and isinstance(error, VerificationUnavailable):
                raise NoCapacity(f"{error.message}; nodes may still be joining") from error
            raise
        except PeerUnavailable:
            if not self._verifiable.within(AWAY_S, (group, hold), now_s=now_s):
                raise
        else:
            self._verifiable.note((group, hold), now_s=now_s)

    async def _present_nodes(self, now_s: float) -> tuple[NodeCapability, ...]:
        """Nodes that are present, and those that were a moment ago: they may only be registering anew."""
        for node in await self._coordinator.present_nodes():
            self._seen[node.node_id] = node, now_s
        self._seen = {node_id: seen for node_id, seen in self._seen.items() if now_s - seen[1] <= JOINING_S}
        return tuple(node for _, (node, seen_s) in sorted(self._seen.items()) if now_s - seen_s <= PRESENT_S)

    async def _check_capacity(self, group: TaskGroup) -> None:
        """Refuse what would have to wait; not for a peer that is away for a moment, if there was capacity before."""
        now_s = self._clock.now_s()
        try:
            nodes = await self._coordinator.ready_nodes()
            if not nodes:
                raise NoCapacity("no node is ready", retry_after_s=1.0)
            await self._partitioner.plan(group.model_id, [node.capability for node in nodes], _seating(group))
        except PeerUnavailable:
            if not self._had_capacity.within(AWAY_S, group, now_s=now_s):
                raise
        except (NoCapacity, VerificationUnavailable):
            self._had_capacity.forget(group)
            raise
        else:
            self._had_capacity.note(group, now_s=now_s)


class _Lately(Generic[K]):
    """What was possible when it was last asked for."""

    def __init__(self) -> None:
        self._at_s: dict[K, float] = {}

    def note(self, key: K, *, now_s: float) -> None:
        self._at_s = {known: at_s for known, at_s in self._at_s.items() if now_s - at_s <= AWAY_S}
        self._at_s[key] = now_s

    def forget(self, key: K) -> None:
        self._at_s.pop(key, None)

    def within(self, seconds: float, key: K, *, now_s: float) -> bool:
        return now_s - self._at_s.get(key, -math.inf) <= seconds


def _seating(group: TaskGroup) -> Seating:
    return Seating(group.verification, group.max_byzantine)


def latency_ms(record: TaskRecord) -> float | None:
    """From submission to the end; None while there is no end."""
    return None if record.finished_s is None else (record.finished_s - record.created_s) * 1000


async def stop_session(coordinator: Coordinator, task_id: TaskId) -> None:
    """Best effort: the registry has ended the task, so its session cannot write any more and ends by itself."""
    try:
        await coordinator.cancel_session(task_id)
    except ButterflyError as error:
        log.warning("session_not_told", extra={"task_id": task_id, "code": error.code})
