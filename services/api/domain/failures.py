"""How an accepted answer can end badly, as its client is told."""

from typing import Final

from shared.domain.errors import (
    ButterflyError,
    DeadlineExceeded,
    DisputeUnresolved,
    GenerationFailed,
    ServerDraining,
    TaskCancelled,
    VerificationUnavailable,
)

_BY_CODE: Final[dict[str, type[ButterflyError]]] = {
    failure.code: failure
    for failure in (
        GenerationFailed,
        TaskCancelled,
        DisputeUnresolved,
        DeadlineExceeded,
        ServerDraining,
        VerificationUnavailable,
    )
}


def failure_from_code(code: str | None, message: str) -> ButterflyError:
    """The failure a client is told: one of the codes of a stream; what is none of them is `generation_failed`."""
    kind = _BY_CODE.get(code or "", GenerationFailed)
    return kind(message or "the answer could not be completed")
