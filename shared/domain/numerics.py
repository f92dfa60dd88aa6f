"""What a stage promises bit for bit: found by each node's self-test, compared before nodes audit each other.

A node's word for it is a claim. A false one gains nothing: it parts the node from the honest ones (`StageFacts` that
differ are never in two lanes of one stage) or slows its sessions down.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

ANY_ROWS = 0
"""The row class of sessions whose calls may be of any size."""
TILE_ROWS = 64  # of a call within the prompt: more gain little speed and make the stages wait for each other


class Profile(StrEnum):
    """What equal input promises (engine.md section 7). From the strongest promise to the weakest."""

    EXACT = "exact"
    """A row's bits depend on its prefix only, whatever the batch or the chunk."""
    DECODE_EXACT = "decode-exact"
    """Equal bits as long as both sides run the prompt in equal tiles and later rows in calls of few rows."""
    TOLERANT = "tolerant"
    """Nothing is promised bit for bit."""


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What a node says of a stage it loaded. Nodes with equal facts compute the same bits."""

    numerics_class: str
    self_test_digest: str
    profile: Profile
    small_rows: int | None
    """`DECODE_EXACT`: most rows per call that agree with one row per call."""


def row_class_of(stages: Iterable[StageFacts]) -> int:
    """Most rows that a call with rows after the prompt may have, at every stage of a session; or `ANY_ROWS`."""
    limits = [facts.small_rows or 1 for facts in stages if facts.profile is Profile.DECODE_EXACT]
    return min(limits, default=ANY_ROWS)


def weakest(profiles: Iterable[Profile]) -> Profile:
    """What may be expected of all of them together; `EXACT` of none."""
    found = set(profiles)
    return next((profile for profile in reversed(Profile) if profile in found), Profile.EXACT)


def smallest(row_classes: Iterable[int]) -> int:
    """The class whose calls are within all of these."""
    return min((each for each in row_classes if each != ANY_ROWS), default=ANY_ROWS)


def fits(facts: StageFacts, row_class: int) -> bool:
    """Whether the stage keeps its promise, if it makes one, in calls of this class."""
    if facts.profile is not Profile.DECODE_EXACT:
        return True
    return row_class != ANY_ROWS and row_class <= (facts.small_rows or 1)


def call_rows(first: int, *, num_known: int, num_prompt: int, row_class: int) -> int:
    """How many rows go in the next call of a sequence that has run `first` of `num_known` rows.

    Whoever runs the same rows in calls of this size, from row 0 on, gets the same bits. Calls with rows after the
    prompt may also be cut smaller, or be shared by sequences.
    """
    if row_class == ANY_ROWS:
        return min(TILE_ROWS, num_known - first)
    if first < num_prompt:
        return min(TILE_ROWS, num_prompt - first)
    return min(row_class, num_known - first)
