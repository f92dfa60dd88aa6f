"""Which finished answers are to be audited, and in which order. No I/O, no clock."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from services.coordinator.domain.session import Subject
from shared.domain.errors import DisputeUnresolved, VerificationUnavailable
from shared.domain.ids import Epoch, NodeId, TaskId
from shared.domain.tail_state import TailState

MAX_WAITING = 64
MAX_REMEMBERED = 256
"""Answers, with their prompts."""
WAIT_S = 60.0
"""How long an answer waits for its turn and for free slots; nobody waits for the outcome."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A verified answer that has come to its end."""

    subject: Subject
    epoch: Epoch
    """Its last."""
    nodes: frozenset[NodeId]
    """That held its seats at the end."""
    at_s: float

    @property
    def is_held(self) -> bool:
        """Its client sees nothing before the audit has passed."""
        return self.subject.task.hold

    @property
    def task_id(self) -> TaskId:
        return self.subject.task.task_id


@dataclass(frozen=True, slots=True)
class Waiting:
    finished: Finished
    until_s: float


def failure_code(state: TailState) -> str:
    """Of a task whose answer was held back and is never shown, by what became of its audit."""
    return DisputeUnresolved.code if state is TailState.FAILED else VerificationUnavailable.code


class TailLine:
    def __init__(self, *, keep_s: float) -> None:
        """`keep_s`: how long answers are remembered that were not chosen."""
        self._keep_s = keep_s
        self._waiting: OrderedDict[TaskId, Waiting] = OrderedDict()
        self._passed_over: OrderedDict[TaskId, Finished] = OrderedDict()

    def add(self, finished: Finished, *, is_drawn: bool) -> bool:
        """An answer was given. False: it was drawn, but there is no room."""
        task_id = finished.task_id
        if is_drawn and len(self._waiting) < MAX_WAITING:
            self._waiting[task_id] = Waiting(finished, finished.at_s + WAIT_S)
            return True
        self._passed_over[task_id] = finished
        if len(self._passed_over) > MAX_REMEMBERED:
            self._passed_over.popitem(last=False)
        return not is_drawn

    def evicted(self, node_id: NodeId, *, now_s: float) -> Sequence[Finished]:
        """A node was found guilty: its late answers go first. Returns those that were not in line before."""
        late = [
            each for each in self._passed_over.values() if node_id in each.nodes and now_s - each.at_s <= self._keep_s
        ]
        fresh = late[: MAX_WAITING - len(self._waiting)]
        for each in fresh:
            task_id = each.task_id
            del self._passed_over[task_id]
            self._waiting[task_id] = Waiting(each, now_s + WAIT_S)
        its_own = [task_id for task_id, each in self._waiting.items() if node_id in each.finished.nodes]
        for task_id in reversed(its_own):
            self._waiting.move_to_end(task_id, last=False)
        return fresh

    def next(self) -> Waiting | None:
        """Taken out of the line."""
        return self._waiting.popitem(last=False)[1] if self._waiting else None
