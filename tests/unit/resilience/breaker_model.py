"""The breaker said again, as a list of rules over plain values, without purgatory and without looking at ours."""

from collections.abc import Callable
from dataclasses import dataclass, field

Outcome = str  # "success", "failure" or "neutral"


@dataclass
class ReferenceBreaker:
    """`open_for` draws how long the next opening lasts; it is asked once per opening."""

    open_for: Callable[[], float]
    failures_to_open: int = 5
    successes_to_close: int = 2
    mode: str = "closed"
    epoch: int = 0
    """Counts the changes of mode: a call belongs to the epoch in which it was let out."""
    row_of_failures: int = 0
    good_probes: int = 0
    closed_again_at: float = 0.0
    probes: dict[int, float] = field(default_factory=dict)
    """Call → its time limit."""

    def ask(self, call: int, now: float, limit: float) -> int | None:
        """The epoch of the call when it is let out, None when it is refused."""
        if self.mode == "half-opened" and any(now >= end for end in self.probes.values()):
            self._open(now)
        if self.mode == "opened" and now >= self.closed_again_at:
            self._change("half-opened")
        if self.mode == "opened":
            return None
        if self.mode == "half-opened":
            if len(self.probes) + self.good_probes >= self.successes_to_close:
                return None
            self.probes[call] = now + limit
        return self.epoch

    def answer(self, call: int, epoch: int, outcome: Outcome, now: float) -> None:
        if epoch != self.epoch:
            return
        end = self.probes.pop(call, None)
        if outcome == "neutral":
            return
        if outcome == "failure" or (end is not None and now >= end):
            self.row_of_failures += 1
            if self.mode == "half-opened" or self.row_of_failures >= self.failures_to_open:
                self._open(now)
            return
        self.row_of_failures = 0
        if self.mode == "half-opened":
            self.good_probes += 1
            if self.good_probes >= self.successes_to_close:
                self._change("closed")

    def _open(self, now: float) -> None:
        self._change("opened")
        self.closed_again_at = now + self.open_for()

    def _change(self, mode: str) -> None:
        self.mode = mode
        self.epoch += 1
        self.row_of_failures = self.good_probes = 0
        self.probes.clear()
