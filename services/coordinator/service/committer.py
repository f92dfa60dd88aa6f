"""Appends drafts to the registry: one call for all sessions that have new tokens, the next while others arrive.

With verification `none` a draft is believed, so appending is the whole commit.
"""

import asyncio
from collections.abc import Callable, Sequence

from services.coordinator.domain.session import Session
from shared.events.catalogue import TokensCommitted
from shared.events.publisher import Publisher
from shared.registry.base import Commit, TaskRegistry

MAX_COMMITS_PER_CALL = 64


class Committer:
    def __init__(self, *, registry: TaskRegistry, events: Publisher, now: Callable[[], float]) -> None:
        self._registry = registry
        self._events = events
        self._now = now
        self._waiting: dict[Session, None] = {}
        self._wake = asyncio.Event()

    def add(self, session: Session) -> None:
        """This session has uncommitted tokens; the session itself bounds how many."""
        self._waiting[session] = None
        self._wake.set()

    async def run_once(self) -> None:
        """Wait for tokens and append them; to be called in a loop. What it could not append it tries again next time.
        Raises `RegistryUnavailable`."""
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
        except BaseException:
            for session in sessions:
                self.add(session)
            raise
        self._settle(sessions, commits, results)

    def _settle(self, sessions: Sequence[Session], commits: Sequence[Commit], results: Sequence[int | None]) -> None:
        for session, commit, num_committed in zip(sessions, commits, results, strict=True):
            waited_ms = session.waited_ms(now_s=self._now())
            session.committed(commit.epoch, num_committed)
            if num_committed is not None and num_committed > commit.first_index:
                self._events.publish(TokensCommitted(commit.task_id, num_committed - commit.first_index, waited_ms))
            if session.uncommitted():
                self.add(session)
