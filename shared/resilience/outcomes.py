"""What an exchange with a peer means: which error the caller gets, what it says of the peer, whether to try again."""

import logging

import httpx
from pydantic import ValidationError

from shared.contracts.problem import Problem
from shared.domain.errors import (
    ButterflyError,
    DeadlineExceeded,
    NoCapacity,
    PeerUnavailable,
    ProtocolViolation,
    QueueFull,
    RegistryUnavailable,
    VerificationUnavailable,
    WrongServiceToken,
    error_from_code,
)
from shared.resilience.breaker import Outcome

log = logging.getLogger(__name__)

FAILING_STATUSES = frozenset({500, 502, 503, 504})
MAY_PASS_STATUSES = frozenset({502, 503})
QUOTA_STATUS = 429
MAX_DETAIL = 2_000  # characters: a peer's words go into logs and records

DECIDED = (NoCapacity, QueueFull, VerificationUnavailable)
"""A 503 that is a considered answer: the peer is well."""
ELSEWHERE = (PeerUnavailable, RegistryUnavailable)
"""A 503 about somebody else: the peer's own caller or store failed, and has been retried there."""


class CallFailed(Exception):
    """Carries the caller's error through breaker and retry, with what these two need to know."""

    def __init__(self, error: ButterflyError, outcome: Outcome, *, may_pass: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.outcome = outcome
        self.may_pass = may_pass
        """True: the same call may succeed a little later."""

    @classmethod
    def neutral(cls, error: ButterflyError) -> "CallFailed":
        return cls(error, Outcome.NEUTRAL)

    @classmethod
    def answered(cls, error: ButterflyError) -> "CallFailed":
        """The peer is there; its answer is no."""
        return cls(error, Outcome.SUCCESS)


def outcome_of(error: Exception) -> Outcome:
    """For the breaker. Anything but a failed call was raised on our side and says nothing of the peer."""
    return error.outcome if isinstance(error, CallFailed) else Outcome.NEUTRAL


def failed_transport(peer: str, error: httpx.TransportError, *, own_deadline: bool) -> CallFailed:
    """No (whole) answer came. `own_deadline`: the limit was what the caller had left, not an adequate one."""
    match error:
        case httpx.PoolTimeout():
            return CallFailed(PeerUnavailable(f"no free connection to {peer}"), Outcome.NEUTRAL, may_pass=True)
        case httpx.ConnectTimeout() | httpx.ConnectError():
            return CallFailed(PeerUnavailable(f"{peer} cannot be reached"), Outcome.FAILURE, may_pass=True)
        case httpx.TimeoutException() if own_deadline:
            return CallFailed.neutral(DeadlineExceeded(f"the deadline passed while waiting for {peer}"))
        case httpx.TimeoutException():
            return CallFailed(PeerUnavailable(f"{peer} did not answer in time"), Outcome.FAILURE, may_pass=True)
        case _:
            return CallFailed(PeerUnavailable(f"{peer} broke the connection"), Outcome.FAILURE, may_pass=True)


def refusal(peer: str, path: str, status: int, content: bytes, *, had_deadline: bool) -> CallFailed:
    """The peer answered with a status other than 2xx."""
    may_pass = status in MAY_PASS_STATUSES
    try:
        problem = Problem.model_validate_json(content)
    except ValidationError:
        if status in FAILING_STATUSES:
            error: ButterflyError = PeerUnavailable(f"{peer} answered {path} with status {status}")
            return CallFailed(error, Outcome.FAILURE, may_pass=may_pass)
        return CallFailed.answered(ProtocolViolation(f"{peer} answered {path} with status {status} and no reason"))
    detail = problem.detail[:MAX_DETAIL]
    error = error_from_code(problem.code, detail, param=problem.param, retry_after_s=problem.retry_after_s)
    if isinstance(error, WrongServiceToken):  # a fault of the cluster's configuration: no caller of ours can mend it
        log.error(
            "service_token_refused",
            extra={"peer": peer, "path": path, "right": "security.service_token is the same in all control services"},
        )
        return CallFailed.answered(PeerUnavailable(f"{peer} refuses this service"))
    if status == QUOTA_STATUS:
        return CallFailed.neutral(error)
    if status not in FAILING_STATUSES or isinstance(error, DECIDED):
        return CallFailed.answered(error)
    if isinstance(error, ELSEWHERE) or (had_deadline and isinstance(error, DeadlineExceeded)):
        return CallFailed.neutral(error)
    return CallFailed(error, Outcome.FAILURE, may_pass=may_pass)
