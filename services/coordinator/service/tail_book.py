"""Which finished answers fresh nodes compute once more: drawn here, audited by `tail_audits`."""

import asyncio
import logging
import random

from services.coordinator.domain.session import Session
from services.coordinator.domain.tail_line import Finished, TailLine, Waiting
from shared.domain.errors import ButterflyError, RegistryUnavailable
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.tail_audit import TailState
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

    def finished(self, session: Session) -> None:
        """An answer was given, its last commit written."""
        if not session.is_verified:
            return
        finished = Finished(session.subject, session.epoch, frozenset(session.nodes), self._clock.now_s())
        is_drawn = self.secret.random() < self._fraction
        if not self._line.add(finished, is_drawn=is_drawn):
            self._note_later(finished, TailState.SKIPPED, "too many wait for one")
        elif is_drawn:
            self._chosen(finished)

    def evicted(self, node_id: NodeId) -> None:
        """A node was found guilty: what it signed of late is looked at first."""
        for finished in self._line.evicted(node_id, now_s=self._clock.now_s()):
            self._chosen(finished)

    async def next(self) -> Waiting:
        """The first in line, taken out of it. Waits for one."""
        while (waiting := self._line.next()) is None:
            self._wake.clear()
            await self._wake.wait()
        return waiting

    async def note(self, task_id: TaskId, epoch: Epoch, state: TailState, reason: str) -> None:
        """Keep with the task what became of it, and tell. While the registry is away it waits."""
        try:
            await self._write(task_id, epoch, state)
        except ButterflyError as error:  # gone, or at a later epoch
            log.info("tail_audit_not_noted", extra={"task_id": task_id, "state": state, "code": error.code})
        log.info("tail_audit", extra={"task_id": task_id, "state": state, "reason": reason})
        self._events.publish(TailAuditChanged(task_id, state, reason))

    async def _write(self, task_id: TaskId, epoch: Epoch, state: TailState) -> None:
        while True:
            try:
                return await self._registry.note_tail_audit(task_id, epoch=epoch, state=state)
            except RegistryUnavailable:
                await self._clock.sleep(WRITE_AGAIN_S)

    def _chosen(self, finished: Finished) -> None:
        self._note_later(finished, TailState.PENDING, "")
        self._wake.set()

    def _note_later(self, finished: Finished, state: TailState, reason: str) -> None:
        task_id = finished.task_id
        _ = self._tasks.start(self.note(task_id, finished.epoch, state, reason), name=f"tail-{task_id}")
