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
    LOST = "lost"
    EVICTED = "evicted"
