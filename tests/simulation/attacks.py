"""What a faulty node does, and what has to become of it."""

from dataclasses import dataclass, field
from enum import StrEnum

from shared.domain.ids import NodeId


class Kind(StrEnum):
    HONEST = "honest"
    WRONG_ROW = "computes, signs and sends a wrong row"
    SLIGHTLY_WRONG = "computes, signs and sends a row wrong in a part that the next stage does not read"
    SKIPPED_ROW = "leaves a row out and goes on"
    POISONED_PREFIX = "replays a committed row wrongly"
    EQUIVOCATES = "signs the right row and sends another"
    HIDES = "signs the right row and sends another, but not over a link that the coordinator carries"
    WITHHOLDS = "signs the right row and sends another, and none over a link that the coordinator carries"
    SIGNS_OTHER = "sends the right row and signs another"
    INPUT_LIE = "signs another input than it got"
    OTHER_IDS = "runs and signs other ids than it was given"
    RING_LIE = "sends another token around the ring than it drafted"
    GUESSES = "signs a guessed output"
    GUESSES_ALL = "signs a guessed input and output"
    EXTRA_RECORD = "sends a record too many"
    DOUBLE_SIGNS = "signs two receipts for one window"
    BAD_FIELD = "signs what contradicts its order, its window or its receipt before"
    REPLAYS = "sends old receipts beside the right one"
    REPLAYS_ONLY = "sends old receipts in place of the right one"
    FORGES = "sends receipts in the name of others"
    SILENT = "posts no receipt"
    OVERRUNS = "goes on after the end"


class Fate(StrEnum):
    CONVICTED = "convicted"
    MARKED = "marked"
    """Or convicted."""
    SPARED = "spared"


@dataclass
class Attack:
    kind: Kind
    lane: int
    stage: int
    window: int
    persistent: bool
    """Whenever it can from then on; else once, in the first epoch."""
    node: NodeId | None = None
    """Who held the seat of (lane, stage) in the first epoch."""
    fired: set[int] = field(default_factory=set)
    """Epochs in which it did it."""
    fates: set[Fate] = field(default_factory=set)

    def is_due(self, epoch: int, lane: int, stage: int, node: NodeId, window: int) -> bool:
        if node != self.node:
            return False
        if self.persistent:
            return window >= self.window
        return (epoch, lane, stage, window) == (1, self.lane, self.stage, self.window)


def fate_of(kind: Kind, *, is_given: bool, is_last: bool, stage: int, persistent: bool) -> Fate:
    """What an audited session has to make of an attack at such a seat, at the least. is_given: the coordinator gave
    the lane its ids. persistent: it is made again when the link is witnessed."""
    is_alone = stage == 0 and is_last
    match kind:
        case (
            Kind.WRONG_ROW
            | Kind.SLIGHTLY_WRONG
            | Kind.SKIPPED_ROW
            | Kind.POISONED_PREFIX
            | Kind.SIGNS_OTHER
            | Kind.GUESSES
            | Kind.EXTRA_RECORD
            | Kind.DOUBLE_SIGNS
            | Kind.BAD_FIELD
        ):
            return Fate.CONVICTED
        case Kind.EQUIVOCATES | Kind.HIDES | Kind.WITHHOLDS | Kind.GUESSES_ALL if is_last:
            return Fate.CONVICTED
        case Kind.EQUIVOCATES if persistent:
            return Fate.CONVICTED
        case Kind.INPUT_LIE | Kind.GUESSES_ALL if persistent and stage > 0:
            return Fate.CONVICTED
        case Kind.INPUT_LIE | Kind.OTHER_IDS | Kind.GUESSES_ALL if stage == 0 and is_given:
            return Fate.CONVICTED
        case Kind.INPUT_LIE | Kind.OTHER_IDS | Kind.RING_LIE if is_alone:
            return Fate.CONVICTED
        case Kind.HIDES | Kind.WITHHOLDS:
            return Fate.MARKED
        case Kind.EQUIVOCATES | Kind.INPUT_LIE | Kind.OTHER_IDS | Kind.GUESSES_ALL | Kind.RING_LIE:
            return Fate.MARKED
        case _:
            return Fate.SPARED
