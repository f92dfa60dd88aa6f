"""All that can be seen of a history from outside, in order: for comparing two plays of a seed, and for reading."""

import hashlib
from collections import Counter, deque
from collections.abc import Callable

LINES_KEPT = 400


class Trace:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._hash = hashlib.blake2b(digest_size=16)
        self.tail: deque[str] = deque(maxlen=LINES_KEPT)
        self.num_events = 0
        self.faults: Counter[str] = Counter()
        """By kind, those that took effect."""

    def note(self, what: str) -> None:
        line = f"{self._now():.6f} {what}"
        self.num_events += 1
        self._hash.update(line.encode())
        self.tail.append(line)

    def fault(self, kind: str, what: str) -> None:
        self.faults[kind] += 1
        self.note(f"{kind.upper()} {what}")

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
