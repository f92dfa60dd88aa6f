"""The coordinator as one of several: who it is, and how long its word holds."""

import hashlib
from dataclasses import dataclass

LEASE_S = 3.0
"""After which the others take over what a silent replica held."""
RENEW_EVERY_S = 1.0
LOOK_AGAIN_S = 0.05
"""After a lease lapsed: clocks and timers are not exact."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One run of a coordinator."""

    boot_id: str
    """Holds the sessions; new with each start."""
    address: str
    """URL at which workers reach this very one."""
    key: str
    """Ed25519, public, hex: what it signs with."""


def look_in_s(next_lapse_s: float | None) -> float:
    """When to renew next: as soon as somebody's lease lapses, if that is earlier. None: nobody has one."""
    if next_lapse_s is None:
        return RENEW_EVERY_S
    return min(RENEW_EVERY_S, next_lapse_s + LOOK_AGAIN_S)


def replica_name(address: str) -> str:
    """Short, and the same in every run of the replica at `address`."""
    return hashlib.blake2b(address.encode(), digest_size=4).hexdigest()
