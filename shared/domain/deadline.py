"""A moment after which an answer is useless, carried from hop to hop as remaining time."""

from dataclasses import dataclass

from shared.domain.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """`at_s` is a reading of the monotonic clock of this process; only `remaining_s` travels."""

    at_s: float

    @classmethod
    def after(cls, seconds: float, *, now_s: float) -> "Deadline":
        return cls(now_s + seconds)

    def remaining_s(self, *, now_s: float) -> float:
        """Seconds left; raises `DeadlineExceeded` when none are."""
        left = self.at_s - now_s
        if left <= 0:
            raise DeadlineExceeded("the deadline has passed")
        return left
