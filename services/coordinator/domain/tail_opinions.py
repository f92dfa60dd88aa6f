"""What follows when lanes that audit one answer come to results of their own. No I/O, no clock."""

from collections.abc import Set
from dataclasses import dataclass, replace
from enum import Enum, auto

from services.coordinator.domain.tail_lane import Differs
from shared.domain.ids import NodeId


class Weighed(Enum):
    """Of two audits, the first of which came to another result than the answer's."""

    FIRST_ALONE = auto()
    """Where it differs the second one came to what was committed."""
    SECOND_ALONE = auto()
    """Where the second one differs the first came to what was committed."""
    ALIKE = auto()
    """Fresh nodes of two lanes say the same against the answer."""
    ALL_DIFFER = auto()
    """There are three results for the same rows."""


def weigh(first: Differs, second: Differs | None) -> Weighed:
    """`second`: None: it passed. An audit ends where it differs: whatever comes before, it found as committed."""
    if second is None or first.place < second.place:
        return Weighed.FIRST_ALONE
    if second.place < first.place:
        return Weighed.SECOND_ALONE
    is_same = first.said.receipt.out_digest == second.said.receipt.out_digest
    return Weighed.ALIKE if is_same else Weighed.ALL_DIFFER


@dataclass(frozen=True, slots=True)
class Opinions:
    """What is known of an answer so far."""

    doubt: Differs | None = None
    """Another result that no second lane has judged."""
    alone: frozenset[NodeId] = frozenset()
    """Who signed what f + 1 nodes and a fresh one contradict: nothing that they say counts any more."""
    guilty: tuple[NodeId, ...] | None = None
    """The answer is revoked: all of whom some must be guilty. None: it is not."""
    has_passed: bool = False

    @property
    def is_settled(self) -> bool:
        return self.has_passed or self.guilty is not None


def believed(before: Opinions, differs: Differs | None, convicted: Set[NodeId]) -> Opinions:
    """An audit came to its end in which nodes were convicted by the word of a trusted one: what they signed counts for
    nothing. Where those are the answer's signers it is revoked, and nobody else is under doubt."""
    if before.doubt is not None and before.doubt.said.receipt.node_id in convicted:
        before = replace(before, doubt=None)
    if differs is not None and differs.said.receipt.node_id in convicted:
        return before  # as if it had not been asked
    signers = () if differs is None else differs.signers
    if any(each.receipt.node_id in convicted for each in signers):
        return Opinions(differs, before.alone, guilty=())
    return heard(before, differs)


def heard(before: Opinions, differs: Differs | None) -> Opinions:
    """An audit came to its end: it passed (None), or came to another result."""
    first = before.doubt
    if first is None:
        return Opinions(differs, before.alone, has_passed=differs is None)
    weighed = weigh(first, differs)
    if differs is None or weighed is Weighed.FIRST_ALONE:
        return _less(Opinions(differs, before.alone, has_passed=differs is None), first.said.receipt.node_id)
    if weighed is Weighed.SECOND_ALONE:
        return _less(before, differs.said.receipt.node_id)
    others = (first.said.receipt.node_id, differs.said.receipt.node_id) if weighed is Weighed.ALL_DIFFER else ()
    accused = (*others, *(each.receipt.node_id for each in (*first.signers, *differs.signers)))
    return Opinions(differs, before.alone, guilty=tuple(dict.fromkeys(accused)))


def unheard(before: Opinions) -> Opinions:
    """No other lane can be asked: where nothing is settled and there is a doubt, f + 1 stand against one."""
    if before.is_settled or before.doubt is None:
        return before
    return Opinions(before.doubt, before.alone, guilty=before.doubt.nodes)


def _less(opinions: Opinions, node_id: NodeId) -> Opinions:
    is_void = opinions.doubt is not None and opinions.doubt.said.receipt.node_id == node_id
    return Opinions(None if is_void else opinions.doubt, opinions.alone | {node_id}, has_passed=opinions.has_passed)
