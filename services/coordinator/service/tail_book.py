"""Which finished answers fresh nodes compute once more: drawn here, audited by `tail_audits`."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Collection

from services.coordinator.domain.session import Session
from services.coordinator.domain.tail_line import Finished, TailLine, Waiting, failure_code
from shared.domain.errors import ButterflyError, RegistryUnavailable
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.tail_state import TailState
from shared.events.catalogue import TailAuditChanged
from shared.events.publisher import Publisher
from shared.registry.base import TaskRegistry
from shared.runtime.clock import Clock
from shared.runtime.tasks import BackgroundTasks

log = logging.getLogger(__name__)

WRITE_AGAIN_S = 1.0


class TailBook:
    def __init__(
        self,
        *,
        fraction: float,
        line: TailLine,
        secret: random.Random,
        registry: TaskRegistry,
        events: Publisher,
        clock: Clock,
        tasks: BackgroundTasks,
    ) -> None:
        """`fraction`: of the answers, in [0, 1]. `secret`: nobody must foresee which, nor who is to audit them."""
        self._fraction, self._line, self.secret = fraction, line, secret
        self._registry, self._events, self._clock, self._tasks = registry, events, clock, tasks
        self._wake = asyncio.Event()
        self._held: set[TaskId] = set()
        self._held_line: deque[Finished] = deque()

    def finished(self, session: Session) -> None:
        """An answer has come to its end, its last commit is written."""
        if not session.is_verified:
            return
        finished = Finished(session.subject, session.epoch, frozenset(session.nodes), self._clock.now_s())
        if finished.is_held:
            self.hold(finished)
            return
        is_drawn = self.secret.random() < self._fraction
        if not self._line.add(finished, is_drawn=is_drawn):
            self._note_later(finished, TailState.SKIPPED, "too many wait for one")
        elif is_drawn:
            self._chosen(finished)

    def evicted(self, node_id: NodeId) -> None:
        """A node was found guilty: what it signed of late is looked at first."""
        for finished in self._line.evicted(node_id, now_s=self._clock.now_s()):
            self._chosen(finished)

    def hold(self, finished: Finished) -> None:
        """Its client waits for the audit: it goes before all others, which do not wait for each other either."""
        self._held.add(finished.task_id)
        self._held_line.append(finished)
        self._chosen(finished)

    def holds(self, task_id: TaskId) -> bool:
        """Whether an answer that is held back is on its way to its outcome here."""
        return task_id in self._held

    @property
    def held(self) -> Collection[TaskId]:
        """Answers that are held back here."""
        return tuple(self._held)

    def settled(self, task_id: TaskId) -> None:
        """No more is done here for an answer that was held back."""
        self._held.discard(task_id)

    async def next_held(self) -> Finished:
        """The next answer that is held back. Waits for one."""
        while not self._held_line:
            self._wake.clear()
            await self._wake.wait()
        return self._held_line.popleft()

    async def next(self) -> Waiting:
        """The first in line of those that were given, taken out of it. Waits for one."""
        while (waiting := self._line.next()) is None:
            self._wake.clear()
            await self._wake.wait()
        return waiting

    async def note(self, task_id: TaskId, epoch: Epoch, state: TailState, reason: str) -> bool:
        """Keep with the task what became of it, and tell: whether it could be kept. While the registry is away it
        waits."""
        is_noted = True
        try:
            await self._write(task_id, epoch, state, reason)
        except ButterflyError as error:  # gone, or at a later epoch
            is_noted = False
            log.info("tail_audit_not_noted", extra={"task_id": task_id, "state": state, "code": error.code})
        log.info("tail_audit", extra={"task_id": task_id, "state": state, "reason": reason})
        self._events.publish(TailAuditChanged(task_id, state, reason))
        return is_noted

    async def _write(self, task_id: TaskId, epoch: Epoch, state: TailState, reason: str) -> None:
        error = f"the answer was held back, and its tail audit {state}: {reason}"
        while True:
            try:
                return await self._registry.note_tail_audit(
                    task_id, epoch=epoch, state=state, error_code=failure_code(state), error=error
                )
            except RegistryUnavailable:
                await self._clock.sleep(WRITE_AGAIN_S)

    def _chosen(self, finished: Finished) -> None:
        self._note_later(finished, TailState.PENDING, "")
        self._wake.set()

    def _note_later(self, finished: Finished, state: TailState, reason: str) -> None:
        task_id = finished.task_id
        _ = self._tasks.start(self.note(task_id, finished.epoch, state, reason), name=f"tail-{task_id}")
