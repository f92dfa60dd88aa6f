"""Who lied, from the receipts of a disputed window and of its replay with a referee lane."""

from collections import defaultdict
from collections.abc import Iterator, Sequence, Set

from shared.domain.ids import NodeId
from shared.domain.passage import Passage, check_passage
from shared.domain.receipt import SignedReceipt
from shared.domain.window_check import CONTRADICTION, LINK, OUTVOTED, Finding, finding, statements
from shared.domain.windows import Window, WindowSchedule

MARKS_TO_QUARANTINE = 3
UNDECIDED = "one of several that made different rows of equal ones, and no referee could tell who was right"
SEVERAL_PARTNERS = "disagreed with several different neighbours"

_Question = tuple[str | int, ...]
"""A stage of a session, and the chain of all rows it was given: what it makes of them is a function of that."""
_Answers = dict[str, dict[NodeId, SignedReceipt]]
"""Chain of the rows made -> who signed for it."""


def convict(
    first_try: Sequence[SignedReceipt],
    second_try: Sequence[Sequence[SignedReceipt]],
    quorum: int,
    passage: Passage | None = None,
    trusted: Set[NodeId] = frozenset(),
) -> tuple[Finding, ...]:
    """The guilty, with one finding each: rule 2 for whoever made two different things of equal rows, rule 5 for whoever
    sent or claims other rows than passed, rule 6 for whoever made other rows of equal ones than `quorum` nodes did.
    Nobody may be: then the session needs a second try, or after it the neighbours of a link fault get a mark
    (`PairMarks`).

    `first_try`: receipts of the dispute, empty if `second_try` is the first; `second_try`: by lane, also of lanes that
    agreed. `quorum`: f+1, so that one of them is honest. `passage`: what passed in the second try over the link at
    fault in the first, if the coordinator carried it. `trusted`: nodes whose word counts for as many.
    """
    again = [receipt for lane in second_try for receipt in lane]
    questions = _answers([*first_try, *again]).values()
    findings = (
        *(found for answers in questions for found in _turncoats(answers)),
        *(check_passage(passage, again) if passage else ()),
        *(found for answers in questions for found in _outvoted(answers, quorum, trusted)),
    )
    guilty: dict[NodeId, Finding] = {}
    for found in findings:
        guilty.setdefault(found.receipts[-1].receipt.node_id, found)
    return tuple(guilty.values())


def undecided(first_try: Sequence[SignedReceipt], again: Sequence[SignedReceipt]) -> tuple[NodeId, ...]:
    """Nodes that made different rows of equal ones, where `again` shows what others make of those: when nobody could be
    convicted, the honest are among them. What was never asked again, as when the model is cut otherwise by then, tells
    against nobody."""
    asked = _answers(again)
    parted = [
        answers
        for question, answers in _answers([*first_try, *again]).items()
        if question in asked and len(answers) > 1
    ]
    return tuple(sorted({node for answers in parted for signers in answers.values() for node in signers}))


def is_settled(receipts: Sequence[SignedReceipt], fault: Finding | None, convicted: Set[NodeId]) -> bool:
    """Whether a dispute needs no second try: it was with nodes that were proven guilty since, and without them nobody
    disagrees. `receipts`: of its first try; `fault`: between neighbours, if that was it."""
    if fault is not None and fault.rule == LINK:
        return not convicted.isdisjoint(pair_of(fault))
    left = [signed for signed in receipts if signed.receipt.node_id not in convicted]
    return len(left) < len(receipts) and all(len(answers) == 1 for answers in _answers(left).values())


def pair_of(fault: Finding) -> tuple[NodeId, NodeId]:
    """Sender and receiver of a link fault. Raises `ValueError` for other findings."""
    if fault.rule != LINK:
        raise ValueError(f"a finding of rule {fault.rule} is about one node")
    sender, receiver = fault.receipts
    return sender.receipt.node_id, receiver.receipt.node_id


class PairMarks:
    """Neighbours that disagreed, which convicts neither: the one who does so with many partners is the likely cause.

    Only partners that are here count: else one liar that comes again and again under new keys would be many."""

    def __init__(self) -> None:
        self._partners: dict[NodeId, set[NodeId]] = defaultdict(set)

    def add(self, one_node: NodeId, other_node: NodeId) -> tuple[NodeId, ...]:
        """Who is to be put in quarantine for it: marks with so many different partners. An accuser gets one as well."""
        pair = (one_node, other_node)
        for one, other in (pair, pair[::-1]):
            self._partners[one].add(other)
        blamed = tuple(node for node in pair if len(self._partners[node]) >= MARKS_TO_QUARANTINE)
        for node in blamed:
            del self._partners[node]
        return blamed

    def forget(self, node_id: NodeId) -> None:
        """It is gone: its marks say nothing any more, about it or about others."""
        self._partners.pop(node_id, None)
        for partners in self._partners.values():
            partners.discard(node_id)


def same_window_again(schedule: WindowSchedule, window: Window) -> WindowSchedule:
    """A schedule for the second try of a disputed window: its first window is that very window, as it was ended."""
    if window.index == 0:
        return schedule
    return WindowSchedule(
        num_prompt=schedule.num_prompt,
        first_index=window.index,
        first_row=window.row_start,
        checkpoint_interval=window.row_end - window.row_start,
        window_checkpoints=1,
    )


def _answers(receipts: Sequence[SignedReceipt]) -> dict[_Question, _Answers]:
    found: dict[_Question, _Answers] = defaultdict(lambda: defaultdict(dict))
    for signed in receipts:
        said = signed.receipt
        stage = (
            said.task_id,
            said.choice,
            said.model_root,
            said.numerics_hash,
            said.sampler_hash,
            said.layer_start,
            said.layer_end,
        )
        for row, below, above in statements(said):
            found[*stage, row, below][above].setdefault(said.node_id, signed)
    return found


def _turncoats(answers: _Answers) -> Iterator[Finding]:
    for above, signers in answers.items():
        for node, signed in signers.items():
            for other, others in answers.items():
                if other != above and node in others:
                    yield finding(CONTRADICTION, others[node], signed, detail="two results for equal rows")


def _outvoted(answers: _Answers, quorum: int, trusted: Set[NodeId]) -> Iterator[Finding]:
    winners = [above for above, signers in answers.items() if signers.keys() & trusted]
    if not winners:
        winners = [above for above, signers in answers.items() if quorum and len(signers) >= quorum]
    if len(winners) != 1:
        return
    right = answers[winners[0]]
    for above, signers in answers.items():
        for signed in signers.values() if above != winners[0] else ():
            yield finding(OUTVOTED, *right.values(), signed, detail=f"{len(right)} nodes made other rows of equal ones")
