"""What can go wrong with a session's seats, and how often it may before the task fails."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.domain.errors import (
    EngineError,
    EngineFault,
    InvalidCredentials,
    StaleEpoch,
    TaskNotFound,
    Unavailable,
    error_from_code,
)
from shared.domain.ids import NodeId

MAX_REASSIGNMENTS = 5
CRASHES_AT_ONE_POSITION = 2
AWAY_S = 5.0
MAX_REASON = 500
"""Characters."""
GENERATION_FAILED = "generation_failed"


class FaultKind(StrEnum):
    CRASH = "crash"
    """The engine failed, or its process started anew, while it computed."""
    GONE = "gone"
    """The node's lease is over, it left, or it does not answer."""
    LINK = "link"
    LOAD = "load"
    """The seat could not be taken: no memory, self-test failed, no slot."""
    LACK = "lack"
    """What passes by itself kept a node from its seat: an open circuit, or another service that it missed. This says
    nothing of the task, so it does not count; that the node is not asked again for a while bounds how often it happens.
    """
    ROWS = "rows"
    """The node has not kept the rows from which it was to go on. It does not count as one that has them any more, so
    this happens at most as often as there are nodes that had."""
    STALL = "stall"
    RULES = "rules"
    """The worker broke the protocol."""
    NUMERICS = "numerics"
    """Nodes that were to be compared do not compute the same bits. They are not seated together again, so this happens
    at most as often as there are nodes."""
    DISPUTE = "dispute"
    """Seats signed different results, and nothing tells yet who is wrong."""
    CONVICTED = "convicted"
    """A node was proven guilty. Each such loss takes one node away, so there are few."""


AWAY = frozenset({FaultKind.GONE, FaultKind.LINK})
UNCOUNTED = frozenset({FaultKind.LACK, FaultKind.ROWS, FaultKind.NUMERICS, FaultKind.CONVICTED})
PASSING = (Unavailable, InvalidCredentials, StaleEpoch, TaskNotFound)
"""Refusals of a seat that say nothing of the next one: something was away, the answer to the node's registration was on
its way, or the node had lost its seat by itself."""


@dataclass(frozen=True, slots=True)
class Fault:
    kind: FaultKind
    reason: str
    position: int = 0
    """Generated tokens when it happened."""
    suspect: NodeId | None = None
    """The node that the next plan should rather do without; no accusation."""
    between: tuple[NodeId, NodeId] | None = None
    """Two nodes that fell out, if that was it."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The task cannot be saved: it fails with this."""

    code: str
    message: str


def kind_of_fault(code: str) -> FaultKind:
    """What an error means that a worker gives for a seat it holds."""
    return FaultKind.CRASH if code in {EngineFault.code, EngineError.code} else FaultKind.LOAD


def kind_of_refusal(code: str) -> FaultKind:
    """What an error means for which a seat was not taken; its node is `not_asked_for_s`."""
    return FaultKind.LACK if _may_pass(code) else kind_of_fault(code)


def not_asked_for_s(code: str) -> float:
    """How long a node is not asked again for a seat that it could not take for this reason: a while if the reason may
    pass, else for ever."""
    return AWAY_S if _may_pass(code) else math.inf


def _may_pass(code: str) -> bool:
    return isinstance(error_from_code(code, ""), PASSING)


def suspect_of(faults: Sequence[Fault], one: NodeId, other: NodeId) -> NodeId:
    """Whom of two nodes that fell out now a plan should rather do without: who fell out more often in this session, and
    `other` if neither did. One of them reports, so the same one each time would be whom a liar points at."""
    counts = {node: sum(node in (fault.between or ()) for fault in faults) for node in (one, other)}
    return one if counts[one] > counts[other] else other


def verdict(faults: Sequence[Fault]) -> GiveUp | None:
    """Whether a task with these faults, in order, is given up (else: reassign it).

    A task that crashes engines at one and the same position would crash every engine there is. That nodes go away is
    no fault of a task, so it counts only while the answer gets no further: else its deadline bounds it.
    """
    crashes = [fault for fault in faults if fault.kind is FaultKind.CRASH]
    if crashes and sum(fault.position == crashes[-1].position for fault in crashes) >= CRASHES_AT_ONE_POSITION:
        return GiveUp(
            GENERATION_FAILED,
            f"poison: the engine crashed {CRASHES_AT_ONE_POSITION} times after generated token {crashes[-1].position}"
            f" ({crashes[-1].reason})",
        )
    if _num_counted(faults) > MAX_REASSIGNMENTS:
        return GiveUp(GENERATION_FAILED, f"reassigned {MAX_REASSIGNMENTS} times, and lost again: {faults[-1].reason}")
    return None


def _num_counted(faults: Sequence[Fault]) -> int:
    """Losses that count: of nodes and links that went away those since the answer had got further than ever."""
    first, furthest = 0, 0
    for index, fault in enumerate(faults):
        if fault.position > furthest:
            first, furthest = index, fault.position
    return sum(
        fault.kind not in UNCOUNTED and (index >= first or fault.kind not in AWAY) for index, fault in enumerate(faults)
    )
