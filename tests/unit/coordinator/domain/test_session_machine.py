"""The table of session phases."""

import itertools

import pytest

from services.coordinator.domain.session_machine import ENDED, RUNNING, TRANSITIONS, SessionEvent, next_phase
from shared.domain.errors import InvalidTransition
from shared.domain.session import SessionPhase


def test_every_pair_has_an_answer_or_raises() -> None:
    for phase, event in itertools.product(SessionPhase, SessionEvent):
        if (phase, event) in TRANSITIONS:
            assert next_phase(phase, event) is TRANSITIONS[phase, event]
        else:
            with pytest.raises(InvalidTransition):
                next_phase(phase, event)


def test_an_ended_session_takes_no_event() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] in ENDED]


def test_every_other_phase_can_be_aborted() -> None:
    assert {phase for phase, event in TRANSITIONS if event is SessionEvent.ABORT} == set(SessionPhase) - ENDED


def test_every_running_phase_can_lose_a_seat_and_comes_back_by_a_new_assignment() -> None:
    for phase in RUNNING:
        recovering = next_phase(phase, SessionEvent.LOSE)
        assert next_phase(recovering, SessionEvent.REASSIGN) is SessionPhase.ASSIGNING


def test_the_usual_way_leads_to_closed() -> None:
    phase = SessionPhase.ASSIGNING
    for event in ("must_load", "seats_ready", "first_token", "answer_ended", "close"):
        phase = next_phase(phase, SessionEvent(event))
    assert phase is SessionPhase.CLOSED
