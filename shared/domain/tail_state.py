"""How the tail audit of an answer stands."""

from enum import StrEnum


class TailState(StrEnum):
    NONE = "none"
    """Not chosen for one."""
    PENDING = "pending"
    """Chosen. A coordinator that is started anew forgets about it."""
    PASSED = "passed"
    FAILED = "failed"
    """Another result: the answer is revoked."""
    SKIPPED = "skipped"
    """No fresh nodes, or none that came to an end in time."""
