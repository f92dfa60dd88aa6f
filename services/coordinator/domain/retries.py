"""When what failed is worth another try: after each failure in a row twice as long later."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

FIRST_WAIT_S = 10.0
LONGEST_WAIT_S = 3_600.0
_MOST_DOUBLINGS = 9
"""More of them are longer than the longest wait."""

Subject = TypeVar("Subject", bound=Hashable)


class Retries(Generic[Subject]):
    def __init__(self) -> None:
        self._failed: dict[Subject, tuple[int, float]] = {}
        """Failures in a row, and before when there is no other try."""

    def may_try(self, subject: Subject, *, now_s: float) -> bool:
        return subject not in self._failed or now_s >= self._failed[subject][1]

    def failed(self, subject: Subject, *, now_s: float) -> None:
        failures, _ = self._failed.get(subject, (0, 0.0))
        wait_s = min(FIRST_WAIT_S * 2 ** min(failures, _MOST_DOUBLINGS), LONGEST_WAIT_S)
        self._failed[subject] = failures + 1, now_s + wait_s

    def succeeded(self, subject: Subject) -> None:
        self._failed.pop(subject, None)

    def forget(self, is_over: Callable[[Subject], bool]) -> None:
        """As if these had never failed."""
        self._failed = {subject: failed for subject, failed in self._failed.items() if not is_over(subject)}
