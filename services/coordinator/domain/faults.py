"""What can go wrong with a session's seats, and how often it may before the task fails."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.domain.errors import EngineError, EngineFault
from shared.domain.ids import NodeId

MAX_REASSIGNMENTS = 5
CRASHES_AT_ONE_POSITION = 2
GENERATION_FAILED = "generation_failed"


class FaultKind(StrEnum):
    CRASH = "crash"
    """The engine failed, or its process started anew, while it computed."""
    GONE = "gone"
    """The node's lease is over, it left, or it does not answer."""
    LINK = "link"
    LOAD = "load"
    """The seat could not be taken: no memory, self-test failed, no slot."""
    STALL = "stall"
    RULES = "rules"
    """The worker broke the protocol."""
    DISPUTE = "dispute"
    """Seats signed different results, and nothing tells yet who is wrong."""
    CONVICTED = "convicted"
    """A node was proven guilty. Each such loss takes one node away, so there are few."""


@dataclass(frozen=True, slots=True)
class Fault:
    kind: FaultKind
    reason: str
    position: int = 0
    """Generated tokens when it happened."""
    suspect: NodeId | None = None
    """The node that the next plan should rather do without; no accusation."""
    neighbour: NodeId | None = None
    """Who may be the cause as well: the other end of the link, or whoever the suspect waits for."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The task cannot be saved: it fails with this."""

    code: str
    message: str


def doubted(faults: Sequence[Fault]) -> NodeId | None:
    """Whom the next plan should rather do without, after these faults of a session. Of two neighbours the one that has
    been part of more faults: else a node that blames one neighbour after the other would stay until the task fails."""
    if not faults:
        return None
    last = faults[-1]
    if last.neighbour is None or last.suspect is None:
        return last.suspect
    parts = Counter(node for fault in faults if fault.neighbour for node in {fault.suspect, fault.neighbour})
    return last.neighbour if parts[last.neighbour] > parts[last.suspect] else last.suspect


def kind_of_refusal(code: str) -> FaultKind:
    """What an error means that a worker gives for a seat it holds."""
    return FaultKind.CRASH if code in {EngineFault.code, EngineError.code} else FaultKind.LOAD


def verdict(faults: Sequence[Fault]) -> GiveUp | None:
    """Whether a task with these faults, in order, is given up (else: reassign it).

    A task that crashes engines at one and the same position would crash every engine there is.
    """
    crashes = [fault for fault in faults if fault.kind is FaultKind.CRASH]
    if crashes and sum(fault.position == crashes[-1].position for fault in crashes) >= CRASHES_AT_ONE_POSITION:
        return GiveUp(
            GENERATION_FAILED,
            f"poison: the engine crashed {CRASHES_AT_ONE_POSITION} times after generated token {crashes[-1].position}"
            f" ({crashes[-1].reason})",
        )
    if sum(fault.kind is not FaultKind.CONVICTED for fault in faults) > MAX_REASSIGNMENTS:
        return GiveUp(GENERATION_FAILED, f"reassigned {MAX_REASSIGNMENTS} times, and lost again: {faults[-1].reason}")
    return None
