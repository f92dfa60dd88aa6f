"""What becomes of a claimed task, and what order the queue has."""

from dataclasses import dataclass
from enum import StrEnum

from shared.domain.errors import ButterflyError, Fenced, InvalidInput, InvalidPlanInput, ModelNotFound, TaskNotFound
from shared.domain.task import InferenceTask


class Refused(StrEnum):
    """What to do with a task whose session was not opened."""

    REQUEUE = "requeue"
    FAIL = "fail"
    FORGET = "forget"
    """Somebody else has decided about the task already: it was cancelled, or runs."""


def after_refusal(error: ButterflyError) -> Refused:
    match error:
        case Fenced() | TaskNotFound():
            return Refused.FORGET
        case InvalidPlanInput():  # the nodes changed since the plan was made: the next plan knows
            return Refused.REQUEUE
        case InvalidInput() | ModelNotFound():
            return Refused.FAIL
        case _:
            return Refused.REQUEUE


@dataclass(frozen=True, slots=True)
class QueueRules:
    is_fifo: bool
    """Order by arrival alone, whatever the tasks' priorities."""
    max_queue_size: int
    """Queued tasks of all models."""
    max_queued_per_owner: int
    """Unfinished tasks of one owner."""

    def rank(self, task: InferenceTask) -> int:
        """Higher goes first."""
        return 0 if self.is_fifo else task.priority
