"""Phases of a session: a task's run on its workers."""

from enum import StrEnum


class SessionPhase(StrEnum):
    ASSIGNING = "assigning"
    LOADING = "loading"
    PREFILLING = "prefilling"
    DRAFTING = "drafting"
    DRAINING = "draining"
    CLOSED = "closed"
    RECOVERING = "recovering"
    ABORTED = "aborted"


class NodeState(StrEnum):
    JOINING = "joining"
    READY = "ready"
    SUSPECT = "suspect"
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    """Odd: no new seats for a while."""
    LOST = "lost"
    EVICTED = "evicted"
    """Proven guilty: its key is refused."""
