"""The phases of a session: one table; every change goes through it, and an absent pair raises."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from shared.domain.errors import InvalidTransition
from shared.domain.session import SessionPhase


class SessionEvent(StrEnum):
    MUST_LOAD = "must_load"
    """Some seat has to load its stage first."""
    SEATS_READY = "seats_ready"
    FIRST_TOKEN = "first_token"  # noqa: S105  not a password
    ANSWER_ENDED = "answer_ended"
    CLOSE = "close"
    LOSE = "lose"
    """A seat is gone, faulty or stuck."""
    REASSIGN = "reassign"
    ABORT = "abort"
    """Cancelled, failed, or somebody else's now."""


_P, _E = SessionPhase, SessionEvent

ENDED = frozenset({_P.CLOSED, _P.ABORTED})
RUNNING = frozenset({_P.ASSIGNING, _P.LOADING, _P.PREFILLING, _P.DRAFTING})
"""Phases in which the session depends on its seats."""

TRANSITIONS: Mapping[tuple[SessionPhase, SessionEvent], SessionPhase] = MappingProxyType(
    {
        (_P.ASSIGNING, _E.MUST_LOAD): _P.LOADING,
        (_P.ASSIGNING, _E.SEATS_READY): _P.PREFILLING,
        (_P.LOADING, _E.SEATS_READY): _P.PREFILLING,
        (_P.PREFILLING, _E.FIRST_TOKEN): _P.DRAFTING,
        # The committed tokens already fill the answer when a session is reassigned to nodes with less room.
        (_P.ASSIGNING, _E.ANSWER_ENDED): _P.DRAINING,
        (_P.DRAFTING, _E.ANSWER_ENDED): _P.DRAINING,
        (_P.DRAINING, _E.CLOSE): _P.CLOSED,
        (_P.RECOVERING, _E.REASSIGN): _P.ASSIGNING,
    }
    | {(phase, _E.LOSE): _P.RECOVERING for phase in RUNNING}
    | {(phase, _E.ABORT): _P.ABORTED for phase in SessionPhase if phase not in ENDED}
)


def next_phase(phase: SessionPhase, event: SessionEvent) -> SessionPhase:
    """The phase that `event` leads to, or `InvalidTransition`."""
    try:
        return TRANSITIONS[phase, event]
    except KeyError:
        raise InvalidTransition(f"a session that is {phase} cannot take the event {event}") from None
