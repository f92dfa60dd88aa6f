"""What silence means: of a node, and of a session. Silence is never evidence of lying, only a reason to replace."""

from shared.domain.session import NodeState

SUSPECT_AFTER = 0.5  # of a lease without a heartbeat
BUSY_FACTOR = 12  # phase timeouts that a session may wait behind others on nodes that do make progress


def node_state(*, silent_s: float, lease_s: float, quarantined: bool, draining: bool, unreachable: bool) -> NodeState:
    """The state of a registered node. `unreachable`: it did not answer a call since its last heartbeat."""
    if silent_s > lease_s:
        return NodeState.LOST
    if quarantined:
        return NodeState.QUARANTINED
    if draining:
        return NodeState.DRAINING
    if unreachable or silent_s > lease_s * SUSPECT_AFTER:
        return NodeState.SUSPECT
    return NodeState.READY


def is_stalled(*, silent_s: float, nodes_silent_s: float, timeout_s: float) -> bool:
    """Whether a session that has shown no progress for `silent_s` is stuck.

    `nodes_silent_s`: since when none of its nodes made progress with any session. While they do, this one may only
    wait for its turn, so it is given longer.
    """
    return silent_s > timeout_s and (nodes_silent_s > timeout_s or silent_s > BUSY_FACTOR * timeout_s)
