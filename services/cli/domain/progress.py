"""How fast answers came, from when their tokens did."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FROM, TO = 1 / 4, 7 / 8
"""Shares of an answer between which its rate is taken: the first windows are small, and the last one is cut short."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one answer. Seconds of one clock."""

    asked_s: float
    tokens: tuple[tuple[float, int], ...]
    """When tokens came, and how many there were then; at least one."""
    end_s: float

    @property
    def first_token_s(self) -> float:
        return self.tokens[0][0] - self.asked_s

    def when(self, count: float) -> float:
        """There were so many tokens, if those of each delivery came evenly since the one before."""
        for (before_s, before), (after_s, after) in pairwise(self.tokens):
            if count <= after:
                return before_s + max(0.0, count - before) / (after - before) * (after_s - before_s)
        return self.tokens[-1][0]

    def count(self, at_s: float) -> float:
        """The reverse of `when`."""
        for (before_s, before), (after_s, after) in pairwise(self.tokens):
            if at_s <= after_s:
                return before + max(0.0, at_s - before_s) / (after_s - before_s) * (after - before)
        return self.tokens[-1][1]


def median_first_token_s(answers: Sequence[Progress]) -> float:
    return statistics.median(answer.first_token_s for answer in answers)


def steady_tokens_per_s(answers: Sequence[Progress]) -> float | None:
    """Of all together while all of them run well; None when there is no such time: they came one after another."""
    from_s = max(answer.when(FROM * answer.tokens[-1][1]) for answer in answers)
    to_s = min(answer.when(TO * answer.tokens[-1][1]) for answer in answers)
    if to_s <= from_s:
        return None
    return sum(answer.count(to_s) - answer.count(from_s) for answer in answers) / (to_s - from_s)


def all_s(answers: Sequence[Progress]) -> float:
    """From the first question to the end of the last answer."""
    return max(answer.end_s for answer in answers) - min(answer.asked_s for answer in answers)
