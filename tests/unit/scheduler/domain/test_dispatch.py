"""What becomes of a refused task, and the order of the queue."""

import pytest

from services.scheduler.domain.dispatch import QueueRules, Refused, after_refusal
from shared.domain.errors import (
    ButterflyError,
    CircuitOpen,
    ContextLengthExceeded,
    InvalidPlanInput,
    InvalidTransition,
    ModelNotFound,
    NoCapacity,
    PeerUnavailable,
    RegistryUnavailable,
    ServerDraining,
    StaleAttempt,
    TaskNotFound,
)
from tests.fakes.tasks import make_task


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (NoCapacity, Refused.REQUEUE),
        (PeerUnavailable, Refused.REQUEUE),
        (CircuitOpen, Refused.REQUEUE),
        (ServerDraining, Refused.REQUEUE),
        (RegistryUnavailable, Refused.REQUEUE),
        (InvalidPlanInput, Refused.REQUEUE),
        (ButterflyError, Refused.REQUEUE),
        (ContextLengthExceeded, Refused.FAIL),
        (ModelNotFound, Refused.FAIL),
        (StaleAttempt, Refused.FORGET),
        (InvalidTransition, Refused.FORGET),
        (TaskNotFound, Refused.FORGET),
    ],
)
def test_what_may_pass_is_tried_again_and_what_cannot_fails(error: type[ButterflyError], verdict: Refused) -> None:
    assert after_refusal(error("why")) is verdict


def test_fifo_ignores_priority() -> None:
    task = make_task(priority=7)
    assert QueueRules(is_fifo=False, max_queue_size=1, max_queued_per_owner=1).rank(task) == 7
    assert QueueRules(is_fifo=True, max_queue_size=1, max_queued_per_owner=1).rank(task) == 0
