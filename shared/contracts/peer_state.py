"""What one process knows of the peers it calls: `GET /state/peers`. A peer's health is one caller's view."""

from typing import Literal

from shared.contracts.base import Contract

BreakerState = Literal["closed", "half-opened", "opened"]


class BreakerView(Contract):
    operation: str
    state: BreakerState
    failures: int
    """In a row, while closed."""
    probes: int
    """On their way, while half open."""
    open_for_s: float
    """Until the first probe may go out."""


class PoolView(Contract):
    calls: int
    """On their way, those whose callers have gone too."""
    max_connections: int
    timeouts: int
    """Waits for a connection in vain, in a row."""
    rebuilds: int


class PeerState(Contract):
    peer: str
    address: str
    """host:port"""
    incarnation: str | None
    """Which run of the peer the breakers are about, as far as it is known."""
    breakers: tuple[BreakerView, ...]
    retry_budget: float
    """Retries that may be made at once."""
    pool: PoolView


class ProcessState(Contract):
    service: str
    boot: str
    peers: tuple[PeerState, ...]
