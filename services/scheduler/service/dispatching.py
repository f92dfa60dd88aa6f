"""The dispatch loop: from the queue to a session at the coordinator."""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from services.scheduler.domain.capacity import ReadyNode, free_slots, reserve, spread
from services.scheduler.domain.dispatch import Refused, after_refusal
from services.scheduler.ports import Coordinator, Partitioner
from services.scheduler.service.following import LEASE_S, Follower
from services.scheduler.service.scheduling import latency_ms
from shared.contracts.coordinator import OpenSession
from shared.domain.errors import ButterflyError, Fenced, TaskNotFound
from shared.domain.ids import NodeId
from shared.domain.plan import PartitionPlan, Seating
from shared.domain.task import TaskGroup
from shared.domain.task_state import TaskEvent
from shared.events.catalogue import TaskDispatched, TaskDispatching, TaskFailed
from shared.events.publisher import Publisher
from shared.registry.base import Claim, TaskRegistry
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

POLL_S = 1.0  # for what no nudge tells: a node joined, a slot was freed after its task had ended
PAUSE_S = 0.25  # after a refused session: the coordinator knew better than the list of nodes, which will tell soon


class Dispatcher:
    """Claims only what the nodes have slots for. What is refused all the same goes back to its place in the queue.

    Giving back does not count as a failed attempt: lack of capacity must not fail a task before its deadline.
    """

    def __init__(
        self,
        *,
        registry: TaskRegistry,
        partitioner: Partitioner,
        coordinator: Coordinator,
        follower: Follower,
        events: Publisher,
        clock: Clock,
        batch_size: int,
        draining: asyncio.Event,
    ) -> None:
        self._registry = registry
        self._partitioner = partitioner
        self._coordinator = coordinator
        self._follower = follower
        self._events = events
        self._clock = clock
        self._batch_size = batch_size
        self._draining = draining
        self._waiting: dict[TaskGroup, str] = {}
        self._paused_until_s: dict[TaskGroup, float] = {}
        self._served: dict[TaskGroup, int] = {}
        """When each group last got slots, as turns: who waits longest is next, or a busy one would starve others."""
        self._busy = asyncio.Lock()

    @property
    def waiting(self) -> Mapping[TaskGroup, str]:
        """Why the queued tasks of a group are not dispatched, for those that are not."""
        return self._waiting

    async def run_once(self) -> None:
        """Wait for work, then dispatch until nothing more can be; to be called in a loop."""
        if self._draining.is_set():
            await self._clock.sleep(POLL_S)  # a nudge taken now would be lost for the other replicas
            return
        await self._registry.wait_for_work(self._patience_s())
        async with self._busy:
            while not self._draining.is_set() and await self._dispatch_some():
                pass

    async def drain(self) -> None:
        """Return once what was claimed is dispatched or given back; nothing more is claimed."""
        self._draining.set()
        async with self._busy:
            pass

    def _patience_s(self) -> float:
        now_s = self._clock.now_s()
        paused_s = [until_s - now_s for until_s in self._paused_until_s.values() if until_s > now_s]
        return min([POLL_S, *paused_s])

    async def _dispatch_some(self) -> bool:
        """One batch of each group; whether there may be more to do at once."""
        groups = await self._registry.groups()
        self._waiting = {group: reason for group, reason in self._waiting.items() if group in groups}
        now_s = self._clock.now_s()
        self._paused_until_s = {group: until_s for group, until_s in self._paused_until_s.items() if until_s > now_s}
        groups = tuple(group for group in groups if group not in self._paused_until_s)
        if not groups:
            return False
        try:
            nodes = await self._coordinator.ready_nodes()
        except ButterflyError as error:
            for group in groups:
                self._wait(group, error.message)
            return False
        free = free_slots(nodes)
        is_more = False
        for group in sorted(groups, key=lambda group: self._served.get(group, 0)):
            claimed, free = await self._dispatch_group(group, nodes, free)
            if claimed:
                self._served[group] = max(self._served.values(), default=0) + 1
            is_more = is_more or claimed == self._batch_size
        return is_more

    async def _dispatch_group(
        self, group: TaskGroup, nodes: Sequence[ReadyNode], free: dict[NodeId, int]
    ) -> tuple[int, dict[NodeId, int]]:
        """How many were claimed, and what is free then."""
        if not nodes:
            self._wait(group, "no node is ready")
            return 0, free
        try:
            pipelines = await self._partitioner.pipelines(
                group.model_id,
                [node.capability for node in nodes],
                Seating(group.verification, group.max_byzantine),
            )
        except ButterflyError as error:
            self._wait(group, error.message)
            return 0, free
        shares = spread(pipelines, self._batch_size, nodes, free)
        if not shares:
            self._waiting[group] = "every slot is taken"
            return 0, free
        self._waiting.pop(group, None)
        claimed: list[tuple[Claim, PartitionPlan]] = []
        try:
            for share in shares:
                claims = await self._registry.claim(
                    group, share.sessions, owner=self._follower.owner, lease_s=LEASE_S, plan_id=share.plan.plan_id
                )
                self._follower.follow(claim.task_id for claim in claims)
                claimed += [(claim, share.plan) for claim in claims]
                free = reserve(share.plan, len(claims), free)
                if len(claims) < share.sessions:
                    break  # the queue is empty
        finally:  # what is claimed is followed, so it has to be opened whatever became of the rest
            async with asyncio.TaskGroup() as tasks:
                for claim, plan in claimed:
                    tasks.create_task(self._open(claim, group, plan))
        return len(claimed), free

    async def _open(self, claim: Claim, group: TaskGroup, plan: PartitionPlan) -> None:
        self._events.publish(TaskDispatching(task_id=claim.task_id))
        try:
            await self._coordinator.open_session(OpenSession(task_id=claim.task_id, attempt=claim.attempt, plan=plan))
        except ButterflyError as error:
            await self._refused(claim, group, error)
        except Exception:  # must not take the other claims of the batch along
            log.exception("session_not_opened", extra={"task_id": claim.task_id})
            self._follower.forget(claim.task_id)  # its lease lapses, then it is queued again
        else:
            self._events.publish(TaskDispatched(task_id=claim.task_id))

    async def _refused(self, claim: Claim, group: TaskGroup, error: ButterflyError) -> None:
        verdict = after_refusal(error)
        log.info("session_refused", extra={"task_id": claim.task_id, "code": error.code, "verdict": verdict})
        try:
            match verdict:
                case Refused.REQUEUE:
                    self._wait(group, error.message, pause_s=PAUSE_S)
                    await self._registry.advance(claim.task_id, TaskEvent.REQUEUE, attempt=claim.attempt)
                    self._follower.forget(claim.task_id)
                case Refused.FAIL:
                    await self._fail(claim, error)
                    self._follower.forget(claim.task_id)
                case Refused.FORGET:
                    pass  # the next renewal tells whether the task still is ours
        except (Fenced, TaskNotFound):
            pass  # cancelled meanwhile; or the session did open and the answer was lost: then it is followed on
        except ButterflyError as trouble:
            self._follower.forget(claim.task_id)  # its lease lapses, then it is queued again
            log.warning("not_given_back", extra={"task_id": claim.task_id, "code": trouble.code})

    async def _fail(self, claim: Claim, error: ButterflyError) -> None:
        await self._registry.advance(
            claim.task_id, TaskEvent.FAIL, attempt=claim.attempt, error_code=error.code, error=error.message
        )
        record = await self._registry.record(claim.task_id)
        self._events.publish(TaskFailed(task_id=claim.task_id, error=error.code, latency_ms=latency_ms(record)))

    def _wait(self, group: TaskGroup, reason: str, *, pause_s: float = POLL_S) -> None:
        if self._waiting.get(group) != reason:
            log.info("tasks_wait", extra={"group": str(group), "reason": reason})
        self._waiting[group] = reason
        self._paused_until_s[group] = self._clock.now_s() + pause_s
