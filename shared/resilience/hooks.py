"""What a caller tells about its calls. `app.py` joins these hooks to events; a hook never breaks a call."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from shared.contracts.peer_state import BreakerState

log = logging.getLogger(__name__)

Details = TypeVar("Details")


@dataclass(frozen=True, slots=True)
class BreakerChange:
    peer: str
    operation: str
    state: BreakerState


@dataclass(frozen=True, slots=True)
class Retried:
    peer: str
    operation: str
    attempt: int
    """The attempt that failed, counted from 1."""
    wait_s: float


@dataclass(frozen=True, slots=True)
class BytesSent:
    peer: str
    operation: str
    size_bytes: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class PoolRebuilt:
    peer: str


def _nothing(_: object) -> None:
    """A hook nobody listens to."""


@dataclass(frozen=True, slots=True)
class PeerHooks:
    """Each callable gets one frozen details object and must return at once."""

    breaker_changed: Callable[[BreakerChange], None] = _nothing
    retried: Callable[[Retried], None] = _nothing
    bytes_sent: Callable[[BytesSent], None] = _nothing
    pool_rebuilt: Callable[[PoolRebuilt], None] = _nothing


def tell(hook: Callable[[Details], None], details: Details) -> None:
    """Call a hook; whatever it raises is logged and goes no further."""
    try:
        hook(details)
    except Exception:
        log.exception("peer_hook_failed", extra={"hook": type(details).__name__})
