"""How an accepted answer can end badly, as its client is told."""

from typing import Final

from shared.domain.errors import ButterflyError, DeadlineExceeded, ServerDraining


class GenerationFailed(ButterflyError):
    """The task failed for good; its own attempts are used up."""

    code = "generation_failed"


class TaskCancelled(ButterflyError):
    """Somebody cancelled the task while this client waited for it."""

    code = "task_cancelled"


class DisputeUnresolved(ButterflyError):
    code = "dispute_unresolved"


_BY_CODE: Final[dict[str, type[ButterflyError]]] = {
    failure.code: failure
    for failure in (GenerationFailed, TaskCancelled, DisputeUnresolved, DeadlineExceeded, ServerDraining)
}


def failure_from_code(code: str | None, message: str) -> ButterflyError:
    """The failure a client is told: one of the five codes of a stream; what is none of them is `generation_failed`."""
    kind = _BY_CODE.get(code or "", GenerationFailed)
    return kind(message or "the answer could not be completed")
