"""Appends drafts to the registry: one call for all sessions that have new tokens, the next while others arrive.

With verification `none` a draft is believed, so appending is the whole commit.
"""

import asyncio
import logging
from collections.abc import Sequence

from services.coordinator.domain.session import Session
from shared.domain.errors import RegistryUnavailable
from shared.events.catalogue import TokensCommitted
from shared.events.publisher import Publisher
from shared.registry.base import Commit, TaskRegistry
from shared.runtime.clock import Clock

log = logging.getLogger(__name__)

MAX_COMMITS_PER_CALL = 64
RETRY_AFTER_S = 0.25


class Committer:
    def __init__(self, *, registry: TaskRegistry, events: Publisher, clock: Clock) -> None:
        self._registry = registry
        self._events = events
        self._clock = clock
        self._waiting: dict[Session, None] = {}
        self._wake = asyncio.Event()

    def add(self, session: Session) -> None:
        """This session has uncommitted tokens; the session itself bounds how many."""
        self._waiting[session] = None
        self._wake.set()

    async def run_once(self) -> None:
        """Wait for tokens and append them; to be called in a loop."""
        await self._wake.wait()
        sessions = [session for session in list(self._waiting)[:MAX_COMMITS_PER_CALL] if session.uncommitted()]
        self._waiting = dict.fromkeys(list(self._waiting)[MAX_COMMITS_PER_CALL:])
        if not self._waiting:
            self._wake.clear()
        if not sessions:
            return
        commits = [
            Commit(session.task.task_id, session.epoch, session.num_committed, session.uncommitted())
            for session in sessions
        ]
        try:
            results = await self._registry.commit(commits)
        except BaseException as error:
            for session in sessions:
                self.add(session)
            if not isinstance(error, RegistryUnavailable):
                raise
            log.warning("commit_deferred", extra={"sessions": len(sessions), "error": error.message})
            await self._clock.sleep(RETRY_AFTER_S)
            return
        self._settle(sessions, commits, results)

    def _settle(self, sessions: Sequence[Session], commits: Sequence[Commit], results: Sequence[int | None]) -> None:
        for session, commit, num_committed in zip(sessions, commits, results, strict=True):
            session.committed(commit.epoch, num_committed)
            if num_committed is not None and num_committed > commit.first_index:
                self._events.publish(TokensCommitted(commit.task_id, num_committed - commit.first_index))
            if session.uncommitted():
                self.add(session)
