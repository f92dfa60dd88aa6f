"""Keeps the leases of the tasks that this replica has claimed."""

import logging
from collections.abc import Iterable

from shared.domain.errors import RegistryUnavailable
from shared.domain.ids import TaskId
from shared.registry.base import TaskRegistry
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

LEASE_S = 2.1  # a claimed task of a scheduler that died is with another one within 3 s
RENEW_EVERY_S = 0.6  # two renewals may fail before a lease lapses


class Follower:
    """A task is followed from its claim until it ends or another replica has it."""

    def __init__(self, *, registry: TaskRegistry, clock: Clock, owner: str) -> None:
        self.owner = owner
        self._registry = registry
        self._clock = clock
        self._followed: set[TaskId] = set()

    @property
    def followed(self) -> frozenset[TaskId]:
        return frozenset(self._followed)

    def follow(self, task_ids: Iterable[TaskId]) -> None:
        self._followed.update(task_ids)

    def forget(self, task_id: TaskId) -> None:
        self._followed.discard(task_id)

    async def renew_once(self) -> None:
        """To be called in a loop."""
        await self._clock.sleep(RENEW_EVERY_S)
        await self._renew(LEASE_S)

    async def give_up(self) -> None:
        """Let another replica take over at once instead of after the lease."""
        try:
            await self._renew(0.0)
        except RegistryUnavailable:
            log.warning("leases_not_given_up", extra={"tasks": len(self._followed)})  # they lapse by themselves

    async def _renew(self, lease_s: float) -> None:
        task_ids = tuple(self._followed)
        self._followed.difference_update(await self._registry.renew(task_ids, owner=self.owner, lease_s=lease_s))
