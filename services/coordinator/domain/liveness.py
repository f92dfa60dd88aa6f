"""What silence means: of a node, and of a session. Silence is never evidence of lying, only a reason to replace."""

from services.coordinator.domain.suspicion import SUSPECT_AT
from shared.domain.session import NodeState

LATE_AFTER = 0.5  # of a lease: a node whose own timers come that late may lose its lease soon
BUSY_FACTOR = 12  # phase timeouts that a session may wait behind others on nodes that do make progress


def node_state(
    *,
    silent_s: float,
    lease_s: float,
    phi: float,
    timer_lag_s: float,
    quarantined: bool,
    draining: bool,
    unreachable: bool,
) -> NodeState:
    """The state of a registered node.

    `phi`: how suspicious its silence is (`suspicion.Rhythm.phi`). `timer_lag_s`: how late it says its own timers come.
    `unreachable`: it did not answer a call since its last heartbeat.
    """
    if silent_s > lease_s:
        return NodeState.LOST
    if quarantined:
        return NodeState.QUARANTINED
    if draining:
        return NodeState.DRAINING
    if unreachable or phi >= SUSPECT_AT or timer_lag_s > lease_s * LATE_AFTER:
        return NodeState.SUSPECT
    return NodeState.READY


def is_stalled(*, silent_s: float, nodes_silent_s: float, timeout_s: float) -> bool:
    """Whether a session that has shown no progress for `silent_s` is stuck.

    `nodes_silent_s`: since when none of its nodes made progress with any session. While they do, this one may only
    wait for its turn, so it is given longer.
    """
    return silent_s > timeout_s and (nodes_silent_s > timeout_s or silent_s > BUSY_FACTOR * timeout_s)
